"""Why an operation does not run yet, in words for its client.

Each operation is told of at most once when it comes, and once more when the number it waited for has
come and others still run before it. What runs when is decided by `plan`. Pure: notices are data.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from ..bus.ids import AdapterId, LaneId
from ..bus.messages import Envelope, Waiting
from .lanes import Answer, Lanes, Operation, Queued
from .plan import turn_sizes


class Ahead(NamedTuple):
    """What runs before an operation: how many of other adapters, of how many adapters, of its own.

    All zero: it runs in the very next turn.
    """

    others: int
    adapters: int
    own: int


class Outlook:
    """What runs before what if nothing else comes. Made once for all operations that are asked for."""

    def __init__(self, runnable: Mapping[AdapterId, Sequence[Queued]]) -> None:
        # Per adapter, in the order of their turns: how many of its operations have run after each.
        self._ends = {adapter: [*accumulate(turn_sizes(queue))] for adapter, queue in runnable.items()}
        self._places: dict[tuple[LaneId, int], int] = {
            (queued.operation.lane, queued.operation.seq): place
            for queue in runnable.values()
            for place, queued in enumerate(queue)
        }

    def ahead_of(self, operation: Operation) -> Ahead | None:
        """None: it is not among what may run."""
        place = self._places.get((operation.lane, operation.seq))
        if place is None:
            return None
        own_ends = self._ends[operation.adapter]
        turns = bisect_right(own_ends, place)  # turns of its own adapter before its turn
        counts: list[int] = []
        its_round = True  # adapters up to its own in the rotation have one turn more before it
        for adapter, ends in self._ends.items():
            if adapter == operation.adapter:
                its_round = False
            elif run := min(turns + its_round, len(ends)):
                counts.append(ends[run - 1])
        own = own_ends[turns - 1] if turns else 0
        return Ahead(sum(counts), len(counts), own)


class Notices:
    """Whom to tell that their operation waits, and why."""

    def __init__(self) -> None:
        self._fresh: list[tuple[Envelope, Operation]] = []
        self._behind_a_gap: list[tuple[Envelope, Operation]] = []

    def arrived(self, asker: Envelope, operation: Operation) -> None:
        self._fresh.append((asker, operation))

    def due(self, lanes: Lanes) -> list[Answer]:
        """What to say, once all that waited in the mailbox is in its lane."""
        asked = [(*each, True) for each in self._behind_a_gap] + [(*each, False) for each in self._fresh]
        self._behind_a_gap, self._fresh = [], []
        told: list[Answer] = []
        in_order: list[tuple[Envelope, Operation, bool]] = []
        for asker, operation, told_before in asked:
            missing = lanes.missing_before(operation)
            if missing is None:
                in_order.append((asker, operation, told_before))
                continue
            self._behind_a_gap.append((asker, operation))
            if not told_before:
                told.append(Answer(asker, Waiting(reason=_gap(missing))))
        return [*told, *_queued(in_order, lanes)] if in_order else told


def _queued(asked: Sequence[tuple[Envelope, Operation, bool]], lanes: Lanes) -> list[Answer]:
    outlook = Outlook(lanes.runnable())
    reasons = [
        (asker, _queue(outlook.ahead_of(operation), own_too=told_before))
        for asker, operation, told_before in asked
    ]
    return [Answer(asker, Waiting(reason=reason, routine=True)) for asker, reason in reasons if reason]


def _gap(number: int) -> str:
    return f"waits for operation {number} of this adapter, which has not arrived yet"


def _queue(ahead: Ahead | None, *, own_too: bool) -> str:
    """own_too: say also that only operations of the same adapter run before it, which a client that
    sends several at once expects."""
    if ahead is None:
        return ""
    if ahead.others:
        whose = "another adapter" if ahead.adapters == 1 else f"{ahead.adapters} other adapters"
        return f"{_operations(ahead.others)} of {whose} {_run(ahead.others)} before it"
    if ahead.own and own_too:
        return f"{_operations(ahead.own)} of this adapter {_run(ahead.own)} before it"
    return ""


def _operations(count: int) -> str:
    return "1 operation" if count == 1 else f"{count} operations"


def _run(count: int) -> str:
    return "runs" if count == 1 else "run"
