"""In which order an adapter's operations go to a trainer again, so that no lane's numbers have a hole. Pure.

A trainer ends the operations of a lane in the order of their numbers. So what it ended says that all
before it had ended too, whatever the journal knows of them: they come first. What failed without ever
being on the lane takes no number; whatever failed at a number at which something else succeeded never was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..bus.errors import BadFrame, LaneLost, SequenceConflict, SequenceGap, SequenceOutOfRange
from ..bus.ids import LaneId, RequestId, TenantId
from ..bus.messages import LanePosition, SkipOperation, UnloadAdapter
from .journal.records import Logged

OURS = TenantId("(broker)")
_NEVER_ON_THE_LANE = frozenset({LaneLost.code, SequenceConflict.code, SequenceOutOfRange.code, BadFrame.code})

_Place = tuple[LaneId, int]


@dataclass(frozen=True, slots=True)
class Order:
    """first: to run again, or to use up their numbers. last: failures that the broker decided, behind numbers
    that are still to come; nobody need wait for them. Unloads stand where they stood."""

    first: Sequence[Logged]
    last: Sequence[Logged]


def order_of(
    logged: Sequence[Logged],
    positions: Sequence[LanePosition],
    *,
    is_over: Callable[[Logged], bool],
    code_of: Callable[[Logged], str],
) -> Order:
    """logged: as `Past.after` has it. positions: where the lanes begin. code_of: of a failure."""
    done = {(each.lane, each.seq) for each in logged if each.order is not None and not each.failed}
    taken = [
        each
        for each in logged
        if not (each.failed and ((each.lane, each.seq) in done or code_of(each) in _NEVER_ON_THE_LANE))
    ]
    places: dict[_Place, Logged] = {}
    for each in taken:  # the same operation may have come under two ids: the first had the number
        places.setdefault((each.lane, each.seq), each)
    expected = {each.lane: each.next_seq for each in positions}
    first: list[Logged] = []
    for each in filter(is_over, taken):
        if each.kind == UnloadAdapter.kind:
            first.append(each)
            continue
        at = expected[each.lane]
        if each.seq < at or (each.seq > at and each.failed and code_of(each) != SequenceGap.code):
            continue
        first += _up_to(each, at, places)
        expected[each.lane] = each.seq + 1
    last = [each for each in filter(is_over, taken) if each.lane and each.seq >= expected[each.lane]]
    return Order(first, last)


def _up_to(logged: Logged, begin: int, places: dict[_Place, Logged]) -> Iterator[Logged]:
    """What the trainer ended on a lane, from a number up to an operation."""
    for seq in range(begin, logged.seq):
        yield places.get((logged.lane, seq)) or _given_up(logged, seq)
    yield logged


def _given_up(behind: Logged, seq: int) -> Logged:
    """A number whose operation never came."""
    return Logged(
        number=0,
        key=(OURS, RequestId(f"{behind.lane}-{seq}")),
        kind=SkipOperation.kind,
        digest=b"",
        adapter=behind.adapter,
        lane=behind.lane,
        seq=seq,
        order=0,
    )
