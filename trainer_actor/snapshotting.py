"""Takes snapshots between turns and tells the broker of them: what bounds how much runs again after a crash.

A snapshot costs the loop a copy of what changed; writing is the disk thread's, while the adapter goes on. Its
report goes the same way as the replies before it, so whoever hears of it has heard of all that it holds.
Unloading is a snapshot, too, after which nothing stays in memory. Which adapter is due is `snapshot_policy`.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import structlog

from ..bus.config import Config
from ..bus.crash_points import crash_point
from ..bus.errors import Aborted, LoractlError
from ..bus.failures import failed
from ..bus.ids import AdapterId
from ..bus.messages import Done, Envelope, KeepSnapshot, LanePosition, Message, SnapshotTaken
from .adapter import Adapter
from .adapters import Adapters
from .disk_jobs import DiskJobs
from .lanes import Answer, Lanes
from .queues import Operation
from .saved_states import Capture
from .snapshot_policy import Owed, SnapshotPolicy
from .snapshots import SnapshotRecord
from .windows import Window

log = structlog.get_logger()

# Of `daemon.stop_timeout_s`: what is left is for the snapshot that is being written then, and for the way out.
_LEAVING_SHARE = 0.6
_NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """positions: of the lanes when the state was copied. unload: who asked for it to leave, if anybody."""

    adapter: Adapter
    capture: Capture
    owed: Owed | None
    positions: tuple[LanePosition, ...]
    unload: Envelope | None
    future: "Future[SnapshotRecord]"


class Snapshotting:
    """report: tells the broker what nobody asked. answer: sends replies."""

    def __init__(
        self,
        config: Config,
        actor: str,
        *,
        adapters: Adapters,
        lanes: Lanes,
        jobs: DiskJobs,
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
        return None if self.busy else self._policy.next_due()

    # --- what happens to adapters ------------------------------------------------------------------

    def ended(self, operation: Operation, now: float) -> None:
        """An operation was answered; it counts from here on, unless it left a snapshot of its own."""
        adapter = self._adapters.find(operation.adapter)
        if adapter is None:
            return
        if adapter.untold is None:
            at_once = self._journalled and not adapter.placed
            self._policy.ran(adapter.id, _size_bytes(operation), now, at_once=at_once)
            return
        record, adapter.untold = adapter.untold, None
        self.settle_of(adapter.id)  # what was begun before it is told before it
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
        self.settle_of(adapter.id)
        self._lanes.queues.hold(adapter.id)
        self._leaving[adapter.id] = asked

    # --- the loop's turns --------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Tell of a snapshot that is whole, and begin the next one that is due."""
        self.settle(now)
        if self.busy:
            return
        wanted = next(iter(self._leaving), None) or self._policy.next(now)
        if wanted is not None:
            self._begin(wanted, now)

    def settle(self, now: float, *, wait: bool = False) -> None:
        """Tell of the snapshot that is whole; with `wait`, of the one under way, when it is."""
        under_way = self._under_way
        if under_way is None or not (wait or under_way.future.done()):
            return
        self._jobs.wait_for(under_way.future)
        self._under_way = None
        try:
            record = under_way.future.result()
        except LoractlError as error:
            under_way.adapter.changed |= set(under_way.capture.pieces)
            self._not_taken(under_way.adapter, under_way.owed, under_way.unload, error, now)
            return
        if under_way.unload is not None:
            self._unloaded(under_way.adapter, record, under_way.unload, now)
        else:
            under_way.adapter.has(record)
            self._tell(under_way.adapter, record, under_way.positions, now)

    def settle_of(self, adapter: AdapterId) -> None:
        """Wait until nothing of the adapter is being written, or is to leave."""
        if adapter in self._leaving:
            self.settle(time.monotonic(), wait=True)
            self._begin(adapter, time.monotonic())
        if self._under_way is not None and self._under_way.adapter.id == adapter:
            self.settle(time.monotonic(), wait=True)

    def _begin(self, wanted: AdapterId, now: float) -> None:
        adapter = self._adapters.find(wanted)
        unload = self._leaving.pop(wanted, None)
        owed = self._policy.taken(wanted)
        assert adapter is not None, "who is deleted owes nothing"
        try:
            capture = self._capture(adapter, leaving=unload is not None)
        except LoractlError as error:
            self._not_taken(adapter, owed, unload, error, now)
            return
        states = self._adapters.states
        future = self._jobs.behind(lambda: states.snapshot(capture), f"a snapshot of {wanted} on the disk")
        positions = self._lanes.positions(wanted)
        self._under_way = _UnderWay(adapter, capture, owed, positions, unload, future)

    def _capture(self, adapter: Adapter, *, leaving: bool) -> Capture:
        """Raises LoractlError: the state cannot be had now; nothing changed."""
        window = Window(step=adapter.window.step) if leaving else adapter.window
        residents, states = self._adapters.residents, self._adapters.states
        if not residents.admitted(adapter.id) and isinstance(adapter.goes_on_from, SnapshotRecord):
            return states.again(adapter.goes_on_from, adapter, window)
        self._adapters.take_up(adapter)
        state = residents.look(adapter.id)
        if leaving:
            state = replace(state, gradients=None, tokens=0)
        return states.capture(adapter, state, window)

    def _not_taken(
        self, adapter: Adapter, owed: Owed | None, unload: Envelope | None, error: LoractlError, now: float
    ) -> None:
        log.warning("snapshot.not_taken", adapter=adapter.id, reason=error.message)
        self._policy.not_taken(adapter.id, owed, now)
        if unload is not None:
            self._lanes.queues.restore(adapter.id)
            self._answer([Answer(unload, failed(error))])

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

    def take_last(self, suspects: Collection[AdapterId], since: float) -> None:
        """Snapshot all that owe one, newest first, while there is time; what is left runs again from the journal.

        Comes when lanes are closed and everybody is answered. since: when the stop began.
        """
        for wanted in self._policy.owing():
            if time.monotonic() - since >= self._stop_s:
                return
            adapter = self._adapters.find(wanted)
            if adapter is None or wanted in suspects or wanted not in self._last:
                continue
            try:
                capture = self._capture(adapter, leaving=False)
                record = self._adapters.states.snapshot(capture)
            except LoractlError as error:
                log.warning("snapshot.not_taken", adapter=wanted, reason=error.message)
                continue
            self._tell(adapter, record, self._last[wanted], time.monotonic())


def _size_bytes(operation: Operation) -> int:
    """What an operation takes in the journal, as far as its arrays are concerned."""
    values = (getattr(operation, each.name) for each in dataclasses.fields(operation))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
