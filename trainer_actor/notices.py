"""Why an operation does not run yet, in words for its client.

Each operation is told of at most once when it comes, and once more when the number it waited for has
come and others still run before it. What runs when is decided by `schedule`. Pure: notices are data.
"""

from collections import Counter
from collections.abc import Sequence

from ..bus.ids import AdapterId, LaneId
from ..bus.messages import Envelope, WaitCause, Waiting
from .lanes import Answer, Lanes
from .leases import Lease
from .queues import Operation


class Notices:
    """Whom to tell that their operation waits, and why. fuse: adapters share passes, so that they wait
    for each other only when there is more than fits in one."""

    def __init__(self, lanes: Lanes, lease: Lease, *, fuse: bool) -> None:
        self._fuse = fuse
        self._lanes = lanes
        self._lease = lease
        self._fresh: list[tuple[Envelope, Operation]] = []
        # By lane, and looked at when something happens there: there may be thousands.
        self._behind_a_gap: dict[LaneId, list[tuple[Envelope, Operation]]] = {}

    def arrived(self, asker: Envelope, operation: Operation) -> None:
        self._fresh.append((asker, operation))

    def due(self, now: float) -> list[Answer]:
        """What to say, once all that waited in the mailbox is in its lane."""
        moved = [self._behind_a_gap.pop(lane, []) for lane in self._lanes.take_moved()]
        asked = [(*each, True) for waited in moved for each in waited]
        asked += [(*each, False) for each in self._fresh]
        self._fresh = []
        told: list[Answer] = []
        in_order: list[tuple[Envelope, Operation, bool]] = []
        for asker, operation, told_before in asked:
            missing = self._lanes.missing_before(operation)
            if missing is None:
                in_order.append((asker, operation, told_before))
                continue
            self._behind_a_gap.setdefault(operation.lane, []).append((asker, operation))
            if not told_before:
                told.append(Answer(asker, Waiting(reason=_gap(missing)), last=False))
        return [*told, *self._queued(in_order, now)]

    def of(self, adapter: AdapterId, now: float) -> str:
        """What the next operation of an adapter waits for; empty when there is none, or nothing to wait for."""
        if aside := self._lanes.queues.aside(adapter):
            return f"its {aside[0].operation.kind} is on its way to or from the disk"
        operation = self._lanes.first(adapter)
        if operation is None:
            return ""
        missing = self._lanes.missing_before(operation)
        return _gap(missing) if missing is not None else self._turn(adapter, own=0, own_too=False, now=now)[0]

    def _queued(self, asked: Sequence[tuple[Envelope, Operation, bool]], now: float) -> list[Answer]:
        places = self._places([operation for _, operation, _ in asked])
        told = []
        for asker, operation, told_before in asked:
            own = places.get((operation.lane, operation.seq))
            if own is None:
                continue  # it was answered at once
            reason, cause = self._turn(operation.adapter, own=own, own_too=told_before, now=now)
            if reason:
                waiting = Waiting(reason=reason, routine=True, cause=cause)
                told.append(Answer(asker, waiting, last=False))
        return told

    def _places(self, asked: Sequence[Operation]) -> dict[tuple[LaneId, int], int]:
        """How many operations of its adapter run before each. They are the last that came, so queues are
        walked from their ends."""
        left = {(operation.lane, operation.seq) for operation in asked}
        places: dict[tuple[LaneId, int], int] = {}
        wanted = Counter(operation.adapter for operation in asked)
        for adapter in [*wanted]:
            queue = self._lanes.queues.of(adapter) or self._lanes.queues.aside(adapter)
            for place, queued in zip(range(len(queue) - 1, -1, -1), reversed(queue), strict=False):
                key = (queued.operation.lane, queued.operation.seq)
                if key in left:
                    places[key] = place
                    wanted[adapter] -= 1
                if not wanted[adapter]:
                    break
        return places

    def _turn(self, adapter: AdapterId, *, own: int, own_too: bool, now: float) -> tuple[str, WaitCause]:
        """The reason to wait, in words and for programs. own_too: say also that only operations of the same
        adapter run before it, which a client that sends several at once expects."""
        holder = self._lease.held(now)
        if holder not in (None, adapter):
            rest_s = self._lease.until - now
            reason = (
                "another adapter has the trainer for itself until its optim_step (trainer.window is "
                f"exclusive), or for {rest_s:.0f} s if its client says nothing more"
            )
            return reason, "others"
        queues = self._lanes.queues
        others = queues.adapters - (adapter in queues)
        if others > 0 and not (self._fuse and queues.tokens <= queues.pass_tokens):
            whose = "another adapter" if others == 1 else f"{others} other adapters"
            before = f"; {_operations(own)} of this adapter {_run(own)} before it" if own else ""
            return f"takes turns with {whose}{before}", "others"
        reason = f"{_operations(own)} of this adapter {_run(own)} before it" if own and own_too else ""
        return reason, "own"


def _gap(number: int) -> str:
    return f"operation {number} of this adapter has not arrived yet"


def _operations(count: int) -> str:
    return "1 operation" if count == 1 else f"{count} operations"


def _run(count: int) -> str:
    return "runs" if count == 1 else "run"
