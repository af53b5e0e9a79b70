"""Carries turns out: what `schedule` decided is placed, run, timed, answered and charged for.

Owns no state of its own. What operations do is `batches` and `operations`; errors become answers at
the `boundary`. Whatever runs is noted before (`in_hand`).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

from ..bus.errors import LoractlError
from ..bus.ids import AdapterId
from ..bus.messages import ForwardBackward, Message, OptimStep
from .accounts import Accounts, PassShare
from .adapters import Adapters
from .batches import Batches
from .boundary import Boundary
from .disk_jobs import DiskJobs, Later
from .in_hand import InHand
from .lanes import Answer, Lanes
from .operations import Operations
from .plan import Share, Turn
from .queues import Queued
from .schedule import Schedule
from .snapshotting import Snapshotting


class Turns:
    """answer: sends replies. alive: says that the loop gets on, and with what, between two steps of long work."""

    def __init__(
        self,
        *,
        lanes: Lanes,
        schedule: Schedule,
        adapters: Adapters,
        batches: Batches,
        operations: Operations,
        accounts: Accounts,
        jobs: DiskJobs,
        boundary: Boundary,
        in_hand: InHand,
        snapshots: Snapshotting,
        answer: Callable[[Sequence[Answer]], None],
        alive: Callable[[str], None],
    ) -> None:
        self._lanes = lanes
        self._schedule = schedule
        self._adapters = adapters
        self._residents = adapters.residents
        self._batches = batches
        self._operations = operations
        self._accounts = accounts
        self._jobs = jobs
        self._boundary = boundary
        self._in_hand = in_hand
        self._snapshots = snapshots
        self._answer = answer
        self._alive = alive

    def run(self, turn: Turn) -> None:
        """Carry a turn out. What fails is answered; after a bug (`boundary.broken`) the rest does not run."""
        if turn.alone:
            self.settle(wait=True)
        if not self._boundary.broken:
            self._run_parts(turn)
        if turn.alone and not self._boundary.broken:
            self.settle(wait=True)
        self._charge_moves()
        if not self._boundary.broken:  # else whoever reads the note learns what it was at
            self._in_hand.take(())

    def _run_parts(self, turn: Turn) -> None:
        self._run_steps(turn.steps)
        if turn.late_steps and not self._boundary.broken:
            self._place(turn)
            self._run_steps(turn.late_steps)
        if turn.members and not self._boundary.broken:
            self._run_pass(turn)
        elif turn.single is not None and not self._boundary.broken:
            self._run_single(turn.single)

    def settle(self, *, wait: bool = False) -> None:
        """Answer the operation whose disk job has ended; with `wait` the one under way, when it ends."""
        job = self._jobs.take_done(wait=wait)
        if job is None:
            return
        self._accounts.kept_disk(job.adapter, job.queued.tenant, job.kept_ms())
        settled = self._boundary.outcome(job.queued.askers[0], [job.adapter], job.outcome)
        assert settled is not None
        if not self._boundary.broken:
            self._in_hand.leave_to_disk(())
        self._lanes.queues.restore(job.adapter)
        self._finish(job.queued, settled)

    def _run_steps(self, shares: Sequence[Share]) -> None:
        """Light operations, the first of each adapter as one batch, then the second of each, and so on."""
        for place in range(max((share.count for share in shares), default=0)):
            heads = [self._head(share.adapter) for share in shares if share.count > place]
            batch = [(queued, op) for queued in heads if isinstance(op := queued.operation, OptimStep)]
            if batch and not self._boundary.broken:
                self._run_batch(batch)
            for queued in heads:
                if not isinstance(queued.operation, OptimStep):
                    self._run_one(queued)

    def _run_batch(self, batch: Sequence[tuple[Queued, OptimStep]]) -> None:
        outcomes: list[Message] = []

        def work() -> None:
            outcomes.extend(self._batches.run_steps([(queued.tenant, step) for queued, step in batch]))

        ms, trouble = self._timed([queued for queued, _ in batch], work)
        if self._blames_nobody(batch):
            return
        for (queued, step), outcome in zip(
            batch, outcomes if trouble is None else [trouble] * len(batch), strict=True
        ):
            self._schedule.charge(self._accounts.stepped(step.adapter, queued.tenant, ms / len(batch)))
            self._finish(queued, outcome)
        self._alive("")

    def _run_pass(self, turn: Turn) -> None:
        """One pass over the base model, for the next piece of each operation that begins or has begun."""
        upcoming = self._schedule.upcoming(turn)
        self._place(turn, soon=upcoming)
        members = [each for share in turn.members for each in self._begun(share)]
        if not members or self._boundary.broken:
            return
        self._prefetch(upcoming, members[0][0])
        outcomes: list[Message | None] = []

        def work() -> None:
            outcomes.extend(self._batches.run_pass([operation for _, operation in members]))

        ms, trouble = self._timed([queued for queued, _ in members], work)
        if self._blames_nobody(members):
            return
        shares = [
            PassShare(op.adapter, queued.tenant, queued.left[0], ended=len(queued.left) == 1)
            for queued, op in members
        ]
        self._schedule.charge(self._accounts.pass_ran(shares, ms))
        for (queued, operation), outcome in zip(
            members, outcomes if trouble is None else [trouble] * len(members), strict=True
        ):
            if outcome is not None:
                self._finish(queued, outcome)
            else:
                queued.ran = self._batches.pieces_ran(operation)
        for share in turn.members:
            self._lanes.queues.rotate(share.adapter)
        self._alive("")

    def _begun(self, share: Share) -> list[tuple[Queued, ForwardBackward]]:
        """The adapter's first forward_backwards, begun. What cannot begin is answered, as is all of a
        turn behind it: it would run before its turn in the order of the lane."""
        members: list[tuple[Queued, ForwardBackward]] = []
        if self._boundary.broken:
            return members
        for queued in islice(list(self._lanes.queues.of(share.adapter)), share.count):
            operation = queued.operation
            assert isinstance(operation, ForwardBackward)
            if not self._batches.has_begun(operation):
                begin = partial(self._batches.begin, queued.tenant, operation)
                self._in_hand.take(queued.askers)
                trouble = self._boundary.outcome(queued.askers[0], [share.adapter], begin)
                if trouble is not None:
                    # Those before it in the queue are answered first, so it waits for the next turn.
                    if not members:
                        self._finish(queued, trouble)
                    break
            members.append((queued, operation))
        return members

    def _run_single(self, adapter: AdapterId) -> None:
        self._run_one(self._head(adapter))
        self._lanes.queues.rotate(adapter)

    def _run_one(self, queued: Queued) -> None:
        if self._boundary.broken:
            return  # what is left is answered with everything else that waits
        operation = queued.operation
        laters: list[Later] = []

        def work() -> Message | None:
            outcome = self._operations.run(queued.tenant, queued.askers[0].request, operation)
            if isinstance(outcome, Later):
                laters.append(outcome)
                return None
            return outcome

        ms, outcome = self._timed([queued], work)
        self._schedule.charge(self._accounts.did(operation.adapter, queued.tenant, ms))
        if outcome is not None:
            self._finish(queued, outcome)
        for later in laters:
            self._lanes.queues.set_aside(operation.adapter)
            self._in_hand.leave_to_disk(queued.askers)
            self._jobs.submit(queued, later)
        self._alive("")

    def _timed(
        self, together: Sequence[Queued], work: Callable[[], Message | None]
    ) -> tuple[float, Message | None]:
        """Milliseconds that work for these took, and what it returned or how it failed."""
        self._in_hand.take(asker for queued in together for asker in queued.askers)
        self._alive(_in_words(together))
        begin = time.perf_counter()
        touched = [queued.operation.adapter for queued in together]
        outcome = self._boundary.outcome(together[0].askers[0], touched, work)
        return (time.perf_counter() - begin) * 1000, outcome

    def _blames_nobody(self, together: Sequence[object]) -> bool:
        """Whether a bug ended several at once: whose doing it was is found out when each runs alone."""
        return self._boundary.broken and len(together) > 1

    def _finish(self, queued: Queued, outcome: Message) -> None:
        adapter = self._adapters.find(queued.operation.adapter)
        self._in_hand.ended(queued.askers)
        self._answer(self._lanes.finish(queued, outcome))
        self._snapshots.ended(queued.operation, time.monotonic())
        open_window = adapter is not None and adapter.window.open
        self._schedule.ran(queued.operation.adapter, open_window=open_window, now=time.monotonic())

    def _head(self, adapter: AdapterId) -> Queued:
        return self._lanes.queues.of(adapter)[0]

    def _place(self, turn: Turn, soon: Sequence[AdapterId] = ()) -> None:
        """Have all members on the device together; who is needed `soon` leaves last. If that fails, each is
        told by its own placing."""
        adapters = [share.adapter for share in (*turn.late_steps, *turn.members)]
        coming = [each for each in adapters if not self._residents.on_device(each)]

        def work() -> None:
            with suppress(LoractlError):
                self._residents.place_all(adapters, soon)

        ms, _ = self._timed([self._head(each) for each in adapters], work)
        for each in coming:
            tenant = self._head(each).tenant
            self._schedule.charge(self._accounts.placed(each, tenant, ms / len(coming)))

    def _prefetch(self, upcoming: Sequence[AdapterId], first: Queued) -> None:
        """Bring in whose turn comes next, behind the pass where the device can do both."""
        if not all(map(self._residents.on_device, upcoming)):
            self._boundary.outcome(first.askers[0], upcoming, partial(self._residents.prefetch, upcoming))

    def _charge_moves(self) -> None:
        for moved in self._residents.take_moves():
            owner = self._adapters.find(moved.adapter)
            if owner is not None:
                tenant = owner.record.tenant
                self._accounts.moved(moved.adapter, tenant, moved.size_bytes, moved.loaded)


def _in_words(together: Sequence[Queued]) -> str:
    first = together[0].operation
    return f"a {first.kind} of {first.adapter}{f' and {len(together) - 1} more' if len(together) > 1 else ''}"
