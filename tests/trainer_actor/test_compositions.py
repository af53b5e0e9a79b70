"""What an outcome notes of its passes is read back as it was, and nothing that cannot have been is believed."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from loractl.bus.errors import InvalidData
from loractl.bus.messages import Bytes, ForwardBackward
from loractl.tests.trainer_actor.test_plan import operation
from loractl.trainer_actor.compositions import (
    PassShape,
    RunShape,
    checked_seats,
    composition,
    packed_seats,
    seats,
)

MOST = 100
MINE = RunShape(lengths=(20, 9), group=0, targets=1, backward=True, whole=False, kept=(12, 3))
OTHER = RunShape(lengths=(5, 60), group=1, targets=3, backward=True, whole=False, kept=(40,))
SCORED = RunShape(lengths=(30,), group=0, targets=1, backward=False, whole=True, kept=())
FIRST = PassShape(7, (OTHER, MINE))
SECOND = PassShape(9, (SCORED,))


def asked(noted: Bytes) -> ForwardBackward:
    body, _ = operation("f20+9+30", "a", 1)
    assert isinstance(body, ForwardBackward)
    return replace(body, composition=noted)


def noted(*seat: tuple[int, PassShape]) -> Bytes:
    return composition([packed_seats(shape)[place] for place, shape in seat])


def packed(value: object) -> Bytes:
    return np.frombuffer(msgspec.msgpack.encode(value), dtype=np.uint8)


def test_what_was_noted_is_read_back() -> None:
    found = checked_seats(asked(noted((1, FIRST), (0, SECOND))), MOST)

    assert [(seat.place, seat.shape, seat.mine) for seat in found] == [(1, FIRST, MINE), (0, SECOND, SCORED)]
    assert (
        composition([packed_seats(seat.shape)[seat.place] for seat in found]).tobytes()
        == noted((1, FIRST), (0, SECOND)).tobytes()
    )


def test_where_nothing_is_noted_nothing_is_read() -> None:
    assert composition([]).size == 0
    assert checked_seats(asked(composition([])), MOST) == ()
    assert seats(composition([])) == ()


def test_what_would_be_too_long_is_not_noted() -> None:
    assert composition([bytes(3 << 20), bytes(3 << 20)]).size == 0


LARGE = PassShape(9, (SCORED, RunShape((80,), 0, 1, False, False, ())))
WIDE = PassShape(9, (SCORED, RunShape((60,), 0, 1 << 23, False, False, ())))
BOTH = PassShape(9, (SCORED, RunShape((60,), 0, 2, True, True, (1,))))
WRONG: dict[str, Bytes] = {
    "no message at all": np.full(9, 0xC1, dtype=np.uint8),
    "cut off": noted((1, FIRST), (0, SECOND))[:-2],
    "of another kind": packed({"place": 1}),
    "a place that is none": packed([[2, [7, [[[20, 9], 0, 1, True, False, []]]]]]),
    "a negative length": packed([[0, [7, [[[20, -9], 0, 1, True, False, []]]]]]),
    "a run of nothing": packed([[0, [7, [[[], 0, 1, True, False, []]]]]]),
    "no runs": packed([[0, [7, []]]]),
    "something more": packed([[0, [7, [[[20, 9, 30], 0, 1, True, False, [], 1]]]]]),
    "nesting without end": np.full(100_000, 0x91, dtype=np.uint8),
    "other datums": noted((1, FIRST)),
    "the datums in another order": noted((0, SECOND), (1, FIRST)),
    "a pass that is too large": noted((1, FIRST), (0, LARGE)),
    "more targets than there can be": noted((1, FIRST), (0, WIDE)),
    "a whole sequence with several targets": noted((1, FIRST), (0, BOTH)),
    "too long": np.zeros(5 << 20, dtype=np.uint8),
    "two dimensions": np.zeros((2, 2), dtype=np.uint8),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_have_been_is_refused(wrong: Bytes) -> None:
    with pytest.raises(InvalidData, match="composition"):
        checked_seats(asked(wrong), MOST)
