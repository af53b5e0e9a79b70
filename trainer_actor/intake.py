"""What comes in, one message at a time: it is answered at once, or joins its lane.

Knows what each message means for what runs; for adapters and lanes `desk` does. Work that is done at once
is noted before (`in_hand`), as a turn is. What has to wait until the disk is done with its adapter is kept
until then, in its order, and holds up nobody else.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from ..bus.errors import Aborted, LaneLost, NotSupported, StorageFailed
from ..bus.failures import failed
from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DescribeModel,
    Done,
    DropVersion,
    Echo,
    Envelope,
    ForwardBackward,
    KeepSnapshot,
    ListAdapters,
    ListTenants,
    Message,
    OpenLane,
    PublishAdapter,
    RecoverAdapter,
    Recovered,
    UnloadAdapter,
    UnloadAgain,
    VersionWritten,
)
from .adapter import Adapter
from .adapters import Adapters
from .batches import Batches
from .boundary import Boundary
from .desk import Desk
from .disk_jobs import DiskJobs
from .fingerprint import fingerprint
from .in_hand import InHand
from .lanes import Answer, Lanes
from .notices import Notices
from .queues import Operation
from .schedule import Schedule
from .snapshotting import Snapshotting
from .turns import Turns

log = structlog.get_logger()

# Whatever of the adapter waits or runs comes to an end with these.
_Ending = DeleteAdapter | UnloadAdapter | RecoverAdapter
_ForDisk = OpenLane | DeleteCheckpoint | UnloadAgain | _Ending


class Intake:
    """answer: sends replies."""

    def __init__(
        self,
        *,
        adapters: Adapters,
        lanes: Lanes,
        desk: Desk,
        turns: Turns,
        batches: Batches,
        jobs: DiskJobs,
        schedule: Schedule,
        notices: Notices,
        boundary: Boundary,
        in_hand: InHand,
        snapshots: Snapshotting,
        answer: Callable[[Sequence[Answer]], None],
    ) -> None:
        self._adapters = adapters
        self._lanes = lanes
        self._desk = desk
        self._turns = turns
        self._batches = batches
        self._jobs = jobs
        self._schedule = schedule
        self._notices = notices
        self._boundary = boundary
        self._in_hand = in_hand
        self._snapshots = snapshots
        self._answer = answer
        # What waits until the disk is done with an adapter.
        self._behind_disk: dict[AdapterId, deque[Envelope]] = {}

    def take_in(self, envelope: Envelope) -> None:
        adapter = self._comes_after(envelope)
        if adapter is None:
            self._carry_out(envelope)
        else:
            self._behind_disk.setdefault(adapter, deque()).append(envelope)
            self._go_on(adapter)

    def resume(self) -> None:
        """Carry out what waited for the disk, as far as that is done."""
        for adapter in list(self._behind_disk):
            self._go_on(adapter)

    def close(self, outcome: Message) -> list[Answer]:
        """Answer what waits for the disk."""
        waiting = [each for envelopes in self._behind_disk.values() for each in envelopes]
        self._behind_disk.clear()
        return [Answer(each, outcome) for each in waiting]

    # --- what waits for the disk -------------------------------------------------------------------

    def _comes_after(self, envelope: Envelope) -> AdapterId | None:
        """The adapter with which the disk has to be done first; None: it may be carried out."""
        match envelope.body:
            case CreateAdapter(name=name):
                return self._being_deleted(envelope.tenant, name)
            case body if isinstance(body, _ForDisk) and self._has_to_wait(envelope, body):
                return body.adapter
            case _:
                return None

    def _being_deleted(self, tenant: TenantId, name: str) -> AdapterId | None:
        """The tenant's adapter of this name, if its deletion waits for the disk: then the name is free."""
        for adapter, waiting in self._behind_disk.items():
            found = self._adapters.find(adapter)
            if found is None or (found.record.tenant, found.record.name) != (tenant, name):
                continue
            if any(isinstance(each.body, DeleteAdapter) for each in waiting):
                return adapter
        return None

    def _has_to_wait(self, envelope: Envelope, request: _ForDisk) -> bool:
        """Nobody waits for what is not theirs, nor holds it up: they are told that it is not there."""
        adapter = self._adapters.find(request.adapter)
        ours = isinstance(request, RecoverAdapter)
        if adapter is None or not (ours or adapter.record.tenant == envelope.tenant):
            return False
        return request.adapter in self._behind_disk or self._disk_has(request)

    def _disk_has(self, request: _ForDisk) -> bool:
        """Whether the disk does something for the adapter that a request has to come after."""
        adapter = request.adapter
        match request:
            case OpenLane():
                return self._snapshots.leaving(adapter)
            case DeleteCheckpoint():
                return self._jobs.adapter == adapter
            case _:
                return self._jobs.adapter == adapter or self._snapshots.at_work_for(adapter)

    def _go_on(self, adapter: AdapterId) -> None:
        waiting = self._behind_disk[adapter]
        while waiting and not self._boundary.broken:
            request = waiting[0].body
            if isinstance(request, _ForDisk) and self._disk_has(request):
                if isinstance(request, _Ending):
                    self._boundary.outcome(waiting[0], [adapter], partial(self._keep_still, adapter))
                return
            if isinstance(request, _Ending):
                self._lanes.queues.restore(adapter)
            self._carry_out(waiting.popleft())
        if not waiting:
            del self._behind_disk[adapter]

    def _keep_still(self, adapter: AdapterId) -> None:
        self._stop_work_of(adapter)
        self._lanes.queues.hold(adapter)

    # --- what is done at once ------------------------------------------------------------------------

    def _carry_out(self, envelope: Envelope) -> None:
        match envelope.body:
            case CreateAdapter() | ListAdapters() | ListTenants() | DescribeModel() | Echo():
                self._at_once(envelope, (), partial(self._control, envelope))
            case KeepSnapshot() as request:
                self._at_once(envelope, (), partial(self._snapshots.keep, request))
            case OpenLane() | DeleteCheckpoint() as request:
                self._at_once(envelope, [request.adapter], partial(self._control, envelope))
            case DeleteAdapter() as request:
                self._at_once(envelope, [request.adapter], partial(self._delete, envelope, request))
            case UnloadAdapter() as request:
                self._at_once(envelope, [request.adapter], partial(self._unload, envelope, request))
            case RecoverAdapter() as request:
                self._at_once(envelope, [request.adapter], partial(self._recover, request))
            case UnloadAgain() as request:
                self._at_once(envelope, [request.adapter], partial(self._unload_again, envelope, request))
            case DropVersion() as request:
                self._at_once(envelope, (), partial(self._drop, request))
            case body if isinstance(body, Operation):
                work = partial(self._admit, envelope, body)
                self._reply(envelope, self._boundary.outcome(envelope, [body.adapter], work))
            case other:
                self._reply(envelope, failed(NotSupported(f"a trainer does not do {other.kind}")))

    def _at_once(
        self, envelope: Envelope, touched: Sequence[AdapterId], work: Callable[[], Message | None]
    ) -> None:
        """Whatever comes here may have been what a trainer before this one died of."""
        if (envelope.tenant, envelope.request) in self._in_hand.suspects:
            self._turns.settle(wait=True)
        self._in_hand.take([envelope])
        self._reply(envelope, self._boundary.outcome(envelope, touched, work))
        self._in_hand.ended([envelope])
        if not self._boundary.broken:
            self._in_hand.take(())

    def _reply(self, envelope: Envelope, reply: Message | None) -> None:
        """None: it has been answered, or will be."""
        if reply is not None:
            self._answer([Answer(envelope, reply)])

    def _control(self, envelope: Envelope) -> None:
        self._answer(self._desk.answer(envelope, time.monotonic()))

    def _delete(self, envelope: Envelope, request: DeleteAdapter) -> None:
        adapter = self._adapters.owned(envelope.tenant, request.adapter).id
        self._stop_work_of(adapter)
        self._control(envelope)
        self._let_go(adapter)

    def _unload(self, envelope: Envelope, request: UnloadAdapter) -> None:
        """Answered once a snapshot holds the adapter, or at once if it is as one says."""
        adapter = self._adapters.owned(envelope.tenant, request.adapter)
        self._stop_work_of(adapter.id)
        self._schedule.gone(adapter.id)
        if not self._adapters.residents.admitted(adapter.id) and not self._lanes.positions(adapter.id):
            return self._reply(envelope, Done())
        return self._snapshots.unload(adapter, envelope)

    def _recover(self, request: RecoverAdapter) -> Recovered:
        """Whatever there is of the adapter is older than what the broker knows. It asks for nobody in
        particular, so nobody's ownership is looked at."""
        self._stop_work_of(request.adapter)
        again = failed(Aborted("the adapter is brought back to where it was; this operation comes again"))
        self._answer(self._lanes.close(request.adapter, again))
        self._let_go(request.adapter)
        adapter = self._adapters.recover(request.adapter, request.snapshot)
        if request.lanes:
            self._adapters.take_up(adapter)  # as whoever opens a lane does: what may run can be placed
        self._lanes.reopen(adapter.id, request.lanes)
        return Recovered(step=adapter.window.step)

    def _unload_again(self, envelope: Envelope, request: UnloadAgain) -> Done:
        """Among what runs again, when nothing else of the adapter is here."""
        adapter = self._adapters.owned(envelope.tenant, request.adapter)
        self._schedule.gone(adapter.id)
        self._adapters.close_window(adapter)
        self._answer(self._lanes.close(adapter.id, failed(Aborted("the adapter was unloaded"))))
        self._lanes.reopen(adapter.id, request.lanes)
        return Done()

    def _stop_work_of(self, adapter: AdapterId) -> None:
        """Should the adapter stay after all, what has begun of it begins anew."""
        self._batches.abandon(adapter)
        for queued in self._lanes.queues.of(adapter):
            queued.ran = 0

    def _let_go(self, adapter: AdapterId) -> None:
        self._schedule.gone(adapter)
        self._snapshots.gone(adapter)

    def _admit(self, envelope: Envelope, operation: Operation) -> None:
        adapter = self._adapters.owned(envelope.tenant, operation.adapter)
        if (written := self._written_before(envelope, operation)) is not None:
            self._answer([Answer(envelope, written)])
            return
        if not self._lanes.knows(operation):
            raise _lane_lost(adapter)
        if isinstance(operation, ForwardBackward):
            operation = self._batches.checked(operation)
        settled = self._lanes.admit(envelope, operation, fingerprint(operation), time.monotonic())
        self._answer(settled)
        if not settled:
            self._notices.arrived(envelope, operation)

    def _written_before(self, envelope: Envelope, operation: Operation) -> VersionWritten | None:
        """A publish is over for its lane before it is for the broker, which waits for a sampler. Should the
        broker die in between, it comes again, though a snapshot may hold what came after it, or its lane may have
        ended."""
        if not isinstance(operation, PublishAdapter):
            return None
        if self._lanes.knows(operation) and not self._lanes.is_past(operation):
            return None
        record = self._adapters.versions.of_request(operation.adapter, envelope.request)
        return VersionWritten(record=record) if record is not None else None

    def _drop(self, request: DropVersion) -> None:
        try:
            self._adapters.versions.drop(request.adapter, request.version)
        except StorageFailed as error:
            # Nobody waits for an answer; the next start finds the version and serves it again.
            log.warning("version.not_dropped", adapter=request.adapter, reason=error.message)


def _lane_lost(adapter: Adapter) -> LaneLost:
    return LaneLost(
        "this lane is not known any more, for the trainer let go of the adapter or restarted without a journal: "
        f"adapter {adapter.record.name!r} is at step {adapter.window.step} without gradients; "
        "open a new lane and go on from there"
    )
