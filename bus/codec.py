"""The wire: one msgpack header and one raw frame per array. Bytes in, messages out; no sockets.

Frame 0 is a map {v: protocol, k: kind, r: request id, t: tenant, l: last, f: fields}; how arrays
refer to the frames behind it stands in `arrays`. The broker reads headers only (`peek`) and forwards
the rest untouched. Whatever is wrong with received bytes ends as `BadFrame` and nothing else.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from .arrays import Buffer
from .config import LimitsConfig
from .errors import BadFrame
from .ids import RequestId, TenantId
from .messages import Envelope
from .schemas import schema_of

PROTOCOL = 1

_Short = Annotated[str, msgspec.Meta(max_length=128)]
_KEYS = {"protocol": "v", "kind": "k", "request": "r", "tenant": "t", "last": "l", "packed": "f"}
# What decoding bytes that are not ours may raise.
MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=_KEYS):
    """What the broker reads of a message. `packed` holds the fields, not decoded yet."""

    protocol: int
    kind: _Short
    request: RequestId
    tenant: TenantId
    last: bool
    packed: msgspec.Raw

    @property
    def names(self) -> set[str]:
        """Of all fields. Raises BadFrame, as `fields` does."""
        try:
            return {*_field_map.decode(self.packed)}
        except MALFORMED as error:
            raise _bad(f"{self.kind}: fields", error) from error

    @property
    def fields(self) -> dict[str, object]:
        """Those fields that are text, numbers, booleans or None, decoded at each use.

        Raises:
            BadFrame: the fields are not a map from a few names to values.
        """
        try:
            packed = _field_map.decode(self.packed)
            return {name: _plain.decode(raw) for name, raw in packed.items() if _is_plain(raw)}
        except MALFORMED as error:
            raise _bad(f"{self.kind}: fields", error) from error


class _Outgoing(msgspec.Struct, kw_only=True, rename=_KEYS):
    protocol: int
    kind: str
    request: str
    tenant: str
    last: bool
    packed: object


_encoder = msgspec.msgpack.Encoder()
_header = msgspec.msgpack.Decoder(Header)
_field_map = msgspec.msgpack.Decoder(Annotated[dict[_Short, msgspec.Raw], msgspec.Meta(max_length=64)])
_plain = msgspec.msgpack.Decoder()


def encode(envelope: Envelope) -> list[Buffer]:
    """Turn a message into frames. Arrays are not copied: leave them as they are until it is sent.

    Raises:
        InvalidData: an array field does not hold an array of its dtype.
    """
    body = envelope.body
    frames: list[Buffer] = [b""]
    packed = schema_of(body.kind).pack(body, frames)
    frames[0] = _encoder.encode(
        _Outgoing(
            protocol=PROTOCOL,
            kind=body.kind,
            request=envelope.request,
            tenant=envelope.tenant,
            last=envelope.last,
            packed=packed,
        )
    )
    return frames


def decode(frames: Sequence[Buffer], limits: LimitsConfig) -> Envelope:
    """Read a whole message. Its arrays are read-only views on the frames.

    Raises:
        BadFrame: the bytes are not a message of this protocol within the limits.
    """
    check_sizes(frames, limits)
    header = peek(frames[0], limits)
    try:
        body = schema_of(header.kind).unpack(header.packed, frames)
    except MALFORMED as error:
        raise _bad(header.kind, error) from error
    return Envelope(request=header.request, tenant=header.tenant, body=body, last=header.last)


def peek(header_frame: Buffer, limits: LimitsConfig) -> Header:
    """Read a header and leave its fields packed: under a microsecond, whatever they hold.

    Raises:
        BadFrame: not a header of this protocol, or longer than the limits allow.
    """
    if len(header_frame) > limits.header_bytes:
        raise BadFrame(f"a header of {len(header_frame)} bytes; at most {limits.header_bytes} are read")
    try:
        header = _header.decode(header_frame)
    except MALFORMED as error:
        raise _bad("header", error) from error
    if header.protocol != PROTOCOL:
        raise BadFrame(f"protocol {header.protocol}; this side speaks {PROTOCOL}")
    if len(header.request) > 128 or len(header.tenant) > 128:
        raise BadFrame("a request id or tenant longer than 128 characters")
    return header


def check_sizes(frames: Sequence[Buffer], limits: LimitsConfig) -> None:
    """Refuse too many or too long frames, before anything looks into them.

    Raises:
        BadFrame: a limit is exceeded, or there is no frame at all.
    """
    if not 0 < len(frames) <= limits.frames:
        raise BadFrame(f"{len(frames)} frames; a message has 1 to {limits.frames}")
    if len(frames[0]) > limits.header_bytes:
        raise BadFrame(f"a header of {len(frames[0])} bytes; at most {limits.header_bytes} are read")
    for frame in frames:
        if len(frame) > limits.frame_bytes:
            raise BadFrame(f"a frame of {len(frame)} bytes; at most {limits.frame_bytes} are read")


def with_fields(header_frame: Buffer, **changes: object) -> bytes:
    """The same header with some of its fields replaced by plain values (no arrays).

    Raises:
        BadFrame: the frame is no header, or lacks these fields.
    """
    try:
        header = _header.decode(header_frame)
        fields: dict[str, object] = {**_field_map.decode(header.packed)}
    except MALFORMED as error:
        raise _bad("header", error) from error
    if missing := sorted(changes.keys() - fields.keys()):
        raise BadFrame(f"{header.kind[:64]}: there is no field {missing[0]!r}")
    return _encoder.encode(
        msgspec.structs.replace(header, packed=msgspec.Raw(_encoder.encode(fields | changes)))
    )


def payload_digest(frames: Sequence[Buffer]) -> bytes:
    """Identify what a request asks for, so that a resend is told from a second use of its id.

    SHA-256 over all frames as received, each behind its length: stable across processes and
    restarts, and about 2 GB/s where the processor has instructions for it.
    """
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.digest()


def _is_plain(raw: msgspec.Raw) -> bool:
    """By the first byte: neither map, list, bytes nor ext (msgpack specification, formats)."""
    lead = memoryview(raw)[0]
    return not (0x80 <= lead <= 0x9F or 0xC4 <= lead <= 0xC9 or 0xD4 <= lead <= 0xD8 or 0xDC <= lead <= 0xDF)


def _bad(what: str, error: Exception) -> BadFrame:
    # What the bytes say may be anything: keep it short and on one line.
    return BadFrame(f"{what}: {error}"[:200].encode("unicode_escape").decode("ascii"))


__all__ = [
    "MALFORMED",
    "PROTOCOL",
    "Buffer",
    "Header",
    "check_sizes",
    "decode",
    "encode",
    "payload_digest",
    "peek",
    "with_fields",
]
