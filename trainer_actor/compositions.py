"""What else was in an operation's passes, as far as it changes bits: noted with its outcome, read when it
runs again. Pure.

Another's rows change nothing in mine but by the shapes of what is computed of both: how many positions the
pass has and which are mine, the lengths of all sequences (attention), where each run begins and ends and
how many of its positions are walked back from (the output layer's chunks), and which runs are of one
geometry (adapters' products). That is all that is noted, no token of anybody. Whoever runs it again puts
fillers in the places of those who are not there (`fillers`).
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from ..bus.errors import InvalidData
from ..bus.messages import Bytes, ForwardBackward

# An operation that would need more has no note, and runs again in whatever passes there are.
_MOST_BYTES = 4 << 20
# Targets of one pass, of all its positions.
_MOST_TARGETS = 1 << 24

_Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST_TARGETS)]
_Some = Annotated[int, msgspec.Meta(ge=1, le=_MOST_TARGETS)]
_Lengths = Annotated[tuple[_Some, ...], msgspec.Meta(min_length=1)]


class RunShape(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One run of a pass. lengths: of its datums. group: equal for runs of one geometry. targets: of each
    position. whole: its loss needs whole sequences. kept: positions that are walked back from, of each
    chunk, or of all where it is whole; empty where it computes no gradients."""

    lengths: _Lengths
    group: _Count
    targets: _Some
    backward: bool
    whole: bool
    kept: tuple[_Count, ...]

    @property
    def positions(self) -> int:
        return sum(self.lengths)


class PassShape(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A pass. number: of microseconds since 1970 when it ran, no two alike in one process: who were in it
    together find each other by it when all of them run again."""

    number: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    runs: Annotated[tuple[RunShape, ...], msgspec.Meta(min_length=1)]

    @property
    def positions(self) -> int:
        return sum(run.positions for run in self.runs)


class Seat(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An operation's piece: run `place` of a pass."""

    place: _Count
    shape: PassShape

    @property
    def mine(self) -> RunShape:
        return self.shape.runs[self.place]


def packed_seats(shape: PassShape) -> list[bytes]:
    """The seats of all runs of a pass, for `composition`."""
    packed = msgspec.Raw(_encode(shape))
    return [_encode((place, packed)) for place in range(len(shape.runs))]


def composition(packed: Sequence[bytes]) -> Bytes:
    """Of an operation whose pieces had these seats. Empty: there are none, or it would be too long."""
    data = _encode([msgspec.Raw(seat) for seat in packed]) if packed else b""
    return np.frombuffer(data if len(data) <= _MOST_BYTES else b"", dtype=np.uint8)


def seats(noted: Bytes) -> tuple[Seat, ...]:
    """Of each piece of an operation; none where nothing is noted. What was checked is not checked again."""
    return _decode(noted.data) if noted.size else ()


def checked_seats(operation: ForwardBackward, most_positions: int) -> tuple[Seat, ...]:
    """The same, of what may be damaged. most_positions: that a pass can have had.

    Raises:
        InvalidData: the operation cannot have run so.
    """
    noted = operation.composition
    if noted.ndim != 1 or noted.size > _MOST_BYTES:
        raise InvalidData(f"a composition of {noted.size} bytes; at most {_MOST_BYTES} are read")
    try:
        found = seats(noted)
    except msgspec.MsgspecError as error:
        raise InvalidData(f"a composition that cannot be read: {error}"[:200]) from error
    for seat in found:
        _check(seat, most_positions)
    mine = [length for seat in found for length in seat.mine.lengths]
    if found and mine != operation.lengths.tolist():
        raise InvalidData("a composition of other datums")
    return found


def _check(seat: Seat, most_positions: int) -> None:
    runs, positions = seat.shape.runs, seat.shape.positions
    if seat.place >= len(runs):
        raise InvalidData(f"a composition in which it is run {seat.place} of {len(runs)}")
    if positions > most_positions:
        raise InvalidData(
            f"a composition with a pass of {positions} positions; {most_positions} are possible"
        )
    if any(run.whole and run.targets > 1 for run in runs):
        raise InvalidData("a composition with several targets where a loss takes one")
    if sum(run.positions * run.targets for run in runs) > _MOST_TARGETS:
        raise InvalidData(f"a composition with more than {_MOST_TARGETS} targets in a pass")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Seat, ...]).decode
