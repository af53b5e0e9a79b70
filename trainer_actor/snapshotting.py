"""Takes snapshots between turns and tells the broker of them: what bounds how much runs again after a crash.

A snapshot costs the loop a copy of what changed; writing is the disk thread's, while the adapter goes on. Its
report goes the same way as the replies before it, so whoever hears of it has heard of all that it holds.
Unloading is a snapshot, too, after which nothing stays in memory. Which adapter is due is `snapshot_policy`.

Of an adapter for which a disk job is under way none is begun: the job may be a load, which puts another state
in its place and is told as a snapshot itself.
"""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import structlog

from ..bus.config import Config
from ..bus.crash_points import crash_point
from ..bus.errors import Aborted
from ..bus.failures import failed
from ..bus.ids import AdapterId
from ..bus.messages import (
    Done,
    Envelope,
    Failed,
    KeepSnapshot,
    LanePosition,
    Message,
    SnapshotTaken,
)
from .adapter import Adapter
from .adapters import Adapters
from .boundary import OURS, Boundary
from .disk_jobs import DiskJobs, Found
from .lanes import Answer, Lanes
from .outcomes import array_bytes
from .queues import Operation
from .saved_states import Capture
from .snapshot_policy import Owed, SnapshotPolicy
from .snapshots import SnapshotRecord
from .windows import Event

log = structlog.get_logger()

# Of `daemon.stop_timeout_s`: what is left is for the snapshot that is being written then, and for the way out.
_LEAVING_SHARE = 0.6
_NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """generation, positions: of the adapter and its lanes when the state was copied. unload: who asked for it
    to leave, if anybody."""

    adapter: Adapter
    generation: int
    capture: Capture
    owed: Owed | None
    positions: tuple[LanePosition, ...]
    unload: Envelope | None
    future: "Future[SnapshotRecord]"

    @property
    def outlived(self) -> bool:
        """Whether another state is in the place of the one that was copied."""
        return self.generation != self.adapter.generation


class Snapshotting:
    """report: tells the broker what nobody asked. answer: sends replies. A bug puts in doubt whose snapshot it
    was, and nobody else (`boundary`)."""

    def __init__(
        self,
        config: Config,
        actor: str,
        *,
        adapters: Adapters,
        lanes: Lanes,
        jobs: DiskJobs,
        boundary: Boundary,
        report: Callable[[Message], None],
        answer: Callable[[Sequence[Answer]], None],
    ) -> None:
        journal = config.journal
        self._journalled = journal.enabled
        # Without a journal nothing runs again, and a snapshot is worth what a checkpoint is: one at the end.
        self._policy = SnapshotPolicy(
            journal.snapshot_s if self._journalled else _NEVER_S,
            journal.snapshot_bytes if self._journalled else 2**62,
        )
        self._stop_s = config.daemon.stop_timeout_s * _LEAVING_SHARE
        self._actor = actor
        self._adapters = adapters
        self._lanes = lanes
        self._jobs = jobs
        self._boundary = boundary
        self._report = report
        self._answer = answer
        self._under_way: _UnderWay | None = None
        self._leaving: dict[AdapterId, Envelope] = {}
        self._last: dict[AdapterId, tuple[LanePosition, ...]] = {}

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written: the loop learns of its end by looking."""
        return self._under_way is not None

    def next_due(self) -> float | None:
        """When `turn` has something to begin, on the clock of `now`; None while nothing changed."""
        return None if self.busy else self._policy.next_due(self._jobs.adapter)

    def leaving(self, adapter: AdapterId) -> bool:
        """Whether the adapter is to leave the memory, and its snapshot is all that this waits for."""
        at = self._under_way
        under_way = at is not None and at.unload is not None and at.adapter.id == adapter
        return under_way or adapter in self._leaving

    def at_work_for(self, adapter: AdapterId) -> bool:
        """Whether a snapshot of the adapter is being written, or has to be for it to leave."""
        at = self._under_way
        return adapter in self._leaving or (at is not None and at.adapter.id == adapter)

    # --- what happens to adapters ------------------------------------------------------------------

    def ended(self, operation: Operation, now: float) -> None:
        """An operation was answered; it counts from here on, unless it left a snapshot of its own."""
        adapter = self._adapters.find(operation.adapter)
        if adapter is None:
            return
        if adapter.untold is None:
            at_once = self._journalled and not adapter.placed
            self._policy.ran(adapter.id, array_bytes(operation), now, at_once=at_once)
            return
        record, adapter.untold = adapter.untold, None
        self._policy.taken(adapter.id)
        self._tell(adapter, record, self._lanes.positions(adapter.id), now)

    def gone(self, adapter: AdapterId) -> None:
        """It was deleted, or brought back to a snapshot. Nothing of it is being written."""
        self._policy.gone(adapter)

    def keep(self, request: KeepSnapshot) -> None:
        """The journal has a snapshot."""
        self._policy.kept(request.adapter)
        self._adapters.snapshots.keep(request.adapter, request.snapshot)

    def unload(self, adapter: Adapter, asked: Envelope) -> None:
        """Let an adapter leave the memory once a snapshot holds it, without the gradients of an open window.

        Until then nothing of it runs. Whoever asked is answered then, and so is everybody who waits in its
        lanes, which end; if the snapshot cannot be taken, all goes on as it was.
        """
        assert not self.at_work_for(adapter.id), "whoever asks waits for that"
        self._lanes.queues.hold(adapter.id)
        self._leaving[adapter.id] = asked

    # --- the loop's turns --------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Begin the next one that is due, once the one before it is whole and told."""
        if self.busy or self._boundary.broken:
            return
        wanted = next(iter(self._leaving), None) or self._policy.next(now, self._jobs.adapter)
        if wanted is not None:
            self._begin(wanted, now)

    def settle(self, now: float, *, wait: bool = False) -> None:
        """Tell of the snapshot that is whole; with `wait`, of the one under way, when it is."""
        at = self._under_way
        if at is None or not (wait or at.future.done()):
            return
        self._jobs.wait_for(at.future)
        self._under_way = None
        record = self._tried(at.adapter, at.unload, at.future.result)
        if at.outlived:
            assert at.unload is None, "nothing changes of whoever leaves"
            self._forget(record)
        elif isinstance(record, Failed):
            at.adapter.changed |= set(at.capture.pieces)
            self._not_taken(at.adapter, at.owed, at.unload, record, now)
        elif at.unload is not None:
            self._unloaded(at.adapter, record, at.unload, now)
        else:
            at.adapter.has(record)
            self._tell(at.adapter, record, at.positions, now)

    def _begin(self, wanted: AdapterId, now: float) -> None:
        adapter = self._adapters.find(wanted)
        unload = self._leaving.pop(wanted, None)
        owed = self._policy.taken(wanted)
        assert adapter is not None, "who is deleted owes nothing"
        capture = self._tried(adapter, unload, partial(self._capture, adapter, leaving=unload is not None))
        if isinstance(capture, Failed):
            self._not_taken(adapter, owed, unload, capture, now)
            return
        snapshot = partial(self._adapters.states.snapshot, capture)
        future = self._jobs.behind(snapshot, f"a snapshot of {wanted} on the disk")
        positions = self._lanes.positions(wanted)
        self._under_way = _UnderWay(adapter, adapter.generation, capture, owed, positions, unload, future)

    def _tried(self, adapter: Adapter, asked: Envelope | None, work: Callable[[], Found]) -> Found | Failed:
        """What work for a snapshot of an adapter came to, or how it failed."""
        found: list[Found] = []
        trouble = self._boundary.outcome(asked or OURS, [adapter.id], lambda: found.append(work()))
        assert trouble is None or isinstance(trouble, Failed)
        return found[0] if trouble is None else trouble

    def _forget(self, record: SnapshotRecord | Failed) -> None:
        """Should it be found by a restart, it would be taken for the adapter's newest state."""
        if not isinstance(record, Failed):
            log.info("snapshot.outlived", adapter=record.adapter, number=record.number)
            self._adapters.snapshots.discard(record)

    def _capture(self, adapter: Adapter, *, leaving: bool) -> Capture:
        """Copy its state as it is now, or as it is to be when it leaves.

        Raises:
            LoractlError: the state cannot be had now; nothing changed.
        """
        window = adapter.window.after(Event.UNLOADED) if leaving else adapter.window
        residents, states = self._adapters.residents, self._adapters.states
        if not residents.admitted(adapter.id) and isinstance(adapter.goes_on_from, SnapshotRecord):
            return states.again(adapter.goes_on_from, adapter, window)
        self._adapters.take_up(adapter)
        state = residents.look(adapter.id)
        if leaving:
            state = replace(state, gradients=None, tokens=0)
        return states.capture(adapter, state, window)

    def _not_taken(
        self, adapter: Adapter, owed: Owed | None, unload: Envelope | None, trouble: Failed, now: float
    ) -> None:
        log.warning("snapshot.not_taken", adapter=adapter.id, reason=trouble.message)
        self._policy.not_taken(adapter.id, owed, now)
        if unload is not None:
            self._lanes.queues.restore(adapter.id)
            self._answer([Answer(unload, trouble)])

    def _tell(
        self, adapter: Adapter, record: SnapshotRecord, positions: Collection[LanePosition], now: float
    ) -> None:
        """positions: when the state was copied. Lanes that were opened since did nothing that it holds."""
        adapter.placed = True
        known = {each.lane for each in positions}
        opened = [each.lane for each in self._lanes.positions(adapter.id) if each.lane not in known]
        fresh = [LanePosition(lane=lane, next_seq=1) for lane in opened]
        self._report(
            SnapshotTaken(
                actor=self._actor,
                adapter=adapter.id,
                snapshot=record.name,
                lanes=(*positions, *fresh),
                step=record.step,
                digest=record.digest,
            )
        )
        crash_point("snapshot.reported")
        if self._journalled:
            self._policy.told(adapter.id, now)
        else:
            self._adapters.snapshots.keep(adapter.id, record.name)

    def _unloaded(self, adapter: Adapter, record: SnapshotRecord, asked: Envelope, now: float) -> None:
        """The lanes' ends are told first, for the snapshot knows of none; then whoever asked hears of it."""
        ended = failed(Aborted("the adapter was unloaded: open a new lane to take it up again"))
        self._answer(self._lanes.close(adapter.id, ended))
        self._adapters.unloaded(adapter, record)
        self._policy.gone(adapter.id)
        self._tell(adapter, record, (), now)
        self._answer([Answer(asked, Done())])

    # --- leaving -----------------------------------------------------------------------------------

    def close(self, parting: Message) -> None:
        """Finish the snapshot under way; part from those whose adapters did not get to leave."""
        self.settle(time.monotonic(), wait=True)
        self._answer([Answer(asked, parting) for asked in self._leaving.values()])
        self._leaving.clear()
        self._last = {adapter: self._lanes.positions(adapter) for adapter in self._policy.owing()}

    def take_last(self, since: float) -> None:
        """Snapshot all that owe one, newest first, while there is time; what is left runs again from the journal.

        Comes when lanes are closed and everybody is answered. since: when the stop began.
        """
        for wanted in self._policy.owing():
            if time.monotonic() - since >= self._stop_s:
                return
            adapter = self._adapters.find(wanted)
            if adapter is None or wanted in self._boundary.suspects or wanted not in self._last:
                continue
            record = self._tried(adapter, None, partial(self._written, adapter))
            if isinstance(record, Failed):
                log.warning("snapshot.not_taken", adapter=wanted, reason=record.message)
            else:
                self._tell(adapter, record, self._last[wanted], time.monotonic())

    def _written(self, adapter: Adapter) -> SnapshotRecord:
        return self._adapters.states.snapshot(self._capture(adapter, leaving=False))
