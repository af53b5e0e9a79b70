"""Bodies of requests to train and to sample: protobuf and JSON, plain and zstd, damaged and lying."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard
from loractl.bus.codec import encode
from loractl.bus.errors import LoractlError
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import Envelope, Message
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import MIB, Play, Subject
from loractl.tests.fuzz.valid_bodies import JSON, PROTOBUF, pass_bodies, pass_trees, sample_trees
from loractl.tinker_bridge.wire import (
    decode_forward_backward,
    decode_sample,
    peek_forward_backward,
    peek_sample,
    to_message,
)

# Tags and lengths of protobuf: groups, lengths without end, fields of other types.
_SPICE = (
    b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\x0b" * 2000, b"\x0a\xff\xff\xff\xff\x07", b"\x12\x80\x80\x80\x80\x08",
    b"\x08\x96\x01", b"\x0d\x00\x00\x80\x7f", b"\x1a\x00" * 500, b"\x07",
)  # fmt: skip
_CONTEXT = 64
# What a reader may hold of one body: its plain form, twice for a moment.
_LARGEST = 256 * MIB
_BOMB_BYTES = 200 * MIB


@contextmanager
def _open(_directory: Path) -> Iterator[Play]:
    bodies, trees, samples = pass_bodies(), pass_trees(), sample_trees()
    squeezed = [zstandard.compress(body) for body in bodies]
    bombs = (
        zstandard.compress(bytes(_BOMB_BYTES)),
        zstandard.compress(b" " * 4 * MIB),
        zstandard.compress(zstandard.compress(bytes(_BOMB_BYTES))),
    )

    def play(source: Source) -> None:
        match source.randrange(100):
            case draw if draw < 35:
                _train(source, source.damaged(source.choice(bodies), _SPICE, bodies), PROTOBUF)
            case draw if draw < 60:
                _train(source, source.json_text(source.changed(source.choice(trees))), JSON)
            case draw if draw < 85:
                _sample(source.json_text(source.changed(source.choice(samples))))
            case draw if draw < 99 or source.randrange(4):
                body = source.damaged(source.choice(squeezed), _SPICE, squeezed)
                _train(source, body, PROTOBUF, source.choice(("zstd", " ZSTD ", "gzip", "identity")))
            case _:
                _train(source, source.choice(bombs), PROTOBUF, "zstd")

    yield play


BODIES = Subject(name="bodies", share=160, open=_open, peak_bytes=2 * _LARGEST)


def _train(source: Source, body: bytes, kind: str, encoding: str | None = None) -> None:
    if source.one_in(30):
        kind = source.choice(("", PROTOBUF, JSON, "text/html", "application/json; charset=\x00", "\ud800"))
    try:
        peek_forward_backward(body, kind, encoding)
    except LoractlError as error:
        check_told(error)
    try:
        call = decode_forward_backward(body, kind, encoding)
    except LoractlError as error:
        check_told(error)
        return
    assert call.inputs.lengths.sum() == call.inputs.tokens.size
    _send(to_message(call, adapter=AdapterId("ad-1"), lane=LaneId("ln-1"), seq=1))


def _sample(body: bytes) -> None:
    try:
        peek_sample(body)
    except LoractlError as error:
        check_told(error)
    try:
        call = decode_sample(body, context_tokens=_CONTEXT)
    except LoractlError as error:
        check_told(error)
        return
    _send(call.message)


def _send(message: Message) -> None:
    """What is taken can be sent on."""
    encode(Envelope(request=RequestId("r"), tenant=TenantId("t"), body=message))
