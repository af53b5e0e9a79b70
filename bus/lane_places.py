"""Where an operation belongs, read from its frames without decoding it: for whoever only passes it on."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from .arrays import Buffer, items_in_frame
from .codec import MALFORMED, Header, decode
from .config import LimitsConfig
from .errors import InvalidRequest
from .ids import AdapterId, LaneId

_Short = Annotated[str, msgspec.Meta(max_length=128)]


class LanePlace(NamedTuple):
    """positions: how many a ForwardBackward runs through the model; 0 for any other operation."""

    adapter: AdapterId
    lane: LaneId
    seq: int
    positions: int


class _Fields(msgspec.Struct, frozen=True):
    """Of all the fields that operations have; others are skipped over."""

    adapter: _Short
    lane: _Short
    seq: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    tokens: msgspec.msgpack.Ext | None = None


_decode = msgspec.msgpack.Decoder(_Fields).decode


def checked_place(header: Header, frames: Sequence[Buffer], limits: LimitsConfig) -> LanePlace:
    """As `lane_place`, for whoever writes it down.

    Raises:
        BadFrame: it is not that message at all.
        InvalidRequest: what it says cannot be a place.
    """
    place = lane_place(header, frames)
    if place is None:
        decode(frames, limits)
        raise InvalidRequest(
            "an operation's adapter and lane are ids of at most 128 characters, and its number has at most 63 bits"
        )
    return place


def lane_place(header: Header, frames: Sequence[Buffer]) -> LanePlace | None:
    """An operation's place, some microseconds whatever its arrays hold.

    None when the fields do not say: whoever decodes the message refuses it.
    """
    try:
        fields = _decode(header.packed)
    except MALFORMED:
        return None
    positions = 0 if fields.tokens is None else items_in_frame(fields.tokens, frames)
    return LanePlace(AdapterId(fields.adapter), LaneId(fields.lane), fields.seq, positions)
