"""Where an operation belongs, read from its frames without decoding it: for whoever only passes it on."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from .arrays import Buffer, items_in_frame
from .codec import MALFORMED, Header
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
    seq: int
    tokens: msgspec.msgpack.Ext | None = None


_decode = msgspec.msgpack.Decoder(_Fields).decode


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
