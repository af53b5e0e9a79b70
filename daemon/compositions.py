"""Compositions of passes, in messages on their way: filled in for what runs again, and kept from strangers. Pure.

What they say is `trainer_actor/compositions`.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..bus.codec import Buffer, Header, decode, encode, peek
from ..bus.config import LimitsConfig
from ..bus.messages import ForwardBackward, PassResult
from .decisions import Frames

_HAVE_ONE = frozenset({ForwardBackward.kind, PassResult.kind})


def as_it_ran(request: Frames, outcome: Frames | None, limits: LimitsConfig) -> Frames:
    """A request with what its outcome says of its passes filled in; as it came where that says nothing."""
    if outcome is None or not has_composition(peek(outcome[0], limits)):
        return request
    ran, asked = decode(outcome, limits).body, decode(request, limits)
    if not isinstance(ran, PassResult) or not isinstance(asked.body, ForwardBackward):
        return request
    return encode(replace(asked, body=replace(asked.body, composition=ran.composition)))


def without(frames: Sequence[Buffer], limits: LimitsConfig) -> Frames:
    """The message for somebody who is not to know how long others' sequences are."""
    if not has_composition(peek(frames[0], limits)):
        return frames
    whole = decode(frames, limits)
    assert isinstance(whole.body, ForwardBackward | PassResult)
    return encode(replace(whole, body=replace(whole.body, composition=whole.body.composition[:0])))


def has_composition(header: Header) -> bool:
    """Raises BadFrame: its fields cannot be read."""
    return header.kind in _HAVE_ONE and "composition" in header.names
