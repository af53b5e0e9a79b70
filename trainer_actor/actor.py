"""The mailbox loop: receive all that waits, admit, have a turn planned, run it, reply.

What is asked of adapters outside of their lanes is answered by `desk`; `turns` carries out what
`schedule` decided.

A deliberate error is answered and the loop lives. After a bug (see `boundary`) everyone who waits
reads that the trainer restarts, and the process ends with status 1 so that the supervisor starts a
sound one. Before any end, clean or not, what a restart would lose is saved.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from ..bus.actor_link import ActorLink
from ..bus.config import Config
from ..bus.errors import ActorRestarting, ActorStopping, LaneLost, NotSupported, StorageFailed
from ..bus.failures import failed
from ..bus.identities import NO_REQUEST, unsolicited
from ..bus.ids import AdapterId
from ..bus.layout import StateLayout
from ..bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DescribeModel,
    Drain,
    DropVersion,
    Echo,
    Envelope,
    Failed,
    ListAdapters,
    ListTenants,
    Message,
    OpenLane,
    UnloadAdapter,
)
from .accounts import Accounts
from .adapters import Adapter, Adapters
from .batches import Batches
from .boundary import Boundary
from .desk import Desk
from .disk_jobs import LOOK_S, DiskJobs
from .engine import TrainEngine
from .fingerprint import fingerprint
from .lanes import Answer, Lanes
from .notices import Notices
from .operations import Operations
from .plan import Turn
from .queues import Operation
from .schedule import Schedule
from .turns import Turns

log = structlog.get_logger()

# The loop turns at least this often, so that whoever watches it sees it live.
_IDLE_S = 1.0
# In whose name the trainer does what nobody asked for.
_OURS = unsolicited(Drain())


class TrainerActor:
    def __init__(self, config: Config, link: ActorLink, engine: TrainEngine, adapters: Adapters) -> None:
        self._link = link
        self._model = engine.details
        self._adapters = adapters
        self._batches = Batches(engine, adapters)
        self._lanes = Lanes(
            gap_timeout_s=config.trainer.lane_gap_timeout_s,
            kept_bytes=config.limits.outcome_bytes,
            pass_tokens=engine.pass_tokens,
            max_ahead=max(config.limits.inflight_per_tenant, 1024),
        )
        self._schedule = Schedule(
            config, costs=engine.measure(), pass_tokens=engine.pass_tokens, queues=self._lanes.queues
        )
        self._notices = Notices(self._lanes, self._schedule.lease, fuse=self._schedule.fuse)
        self._boundary = Boundary()
        accounts = Accounts()
        self._desk = Desk(
            self._model,
            adapters,
            self._lanes,
            config=config,
            accounts=accounts,
            waits_for=self._waits_for,
        )
        self._jobs = DiskJobs()
        self._turns = Turns(
            lanes=self._lanes,
            schedule=self._schedule,
            adapters=adapters,
            batches=self._batches,
            operations=Operations(config, engine, adapters),
            accounts=accounts,
            jobs=self._jobs,
            boundary=self._boundary,
            answer=self._send,
            alive=link.turn,
        )
        self._stopping = False

    @classmethod
    def build(cls, config: Config, link: ActorLink, engine: TrainEngine) -> Self:
        """Find what the disk holds, and put the parts together."""
        return cls(config, link, engine, Adapters.open(config, StateLayout(Path(config.state_dir)), engine))

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status of the process."""
        details = f"{self._model.name}, {self._model.dtype}, {self._model.parameters} parameters"
        self._link.ready(details, self._adapters.versions.all(), len(self._adapters))
        patience_s = 0.0
        while not self._leaving:
            self._take_in(self._link.receive(patience_s))
            now = time.monotonic()
            self._send([*self._lanes.expire(now), *self._desk.due(now), *self._notices.due(now)])
            if not self._leaving:
                patience_s = self._run_next(now)
        self._leave()
        return 1 if self._boundary.broken else 0

    def stop(self) -> None:
        """Leave after the turn in hand, as `Drain` does. Safe to call from a signal handler."""
        self._stopping = True

    @property
    def _leaving(self) -> bool:
        return self._stopping or self._boundary.broken

    def _run_next(self, now: float) -> float:
        """Run the next turn, if there is one. Returns for how many seconds there is nothing to do then."""
        self._turns.settle()
        room, disk_is_free = self._adapters.residents.room(), self._jobs.under_way is None
        decision = self._schedule.next_turn(room, now, disk_is_free=disk_is_free)
        if isinstance(decision, Turn):
            self._turns.run(decision)
            if not self._leaving:
                # A daemon that is never done needs the memory most. One at a time: a turn waits for it.
                self._boundary.outcome(_OURS, (), partial(self._sink_one, now))
            return 0.0
        self._boundary.outcome(_OURS, (), partial(self._adapters.sink_idle, now, self._busy))
        dues = (self._lanes.next_expiry(), self._desk.next_due(), decision.until if decision else None)
        idle_s = _IDLE_S if disk_is_free else LOOK_S
        return min(idle_s, *(max(due - now, 0.0) for due in dues if due is not None), idle_s)

    def _sink_one(self, now: float) -> None:
        self._adapters.sink_one(now, self._busy)

    def _busy(self, adapter: AdapterId) -> bool:
        return self._lanes.queued(adapter) > 0

    def _waits_for(self, adapter: AdapterId) -> str:
        return self._notices.of(adapter, time.monotonic())

    # --- taking in ---------------------------------------------------------------------------

    def _take_in(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            match envelope.body:
                case Drain():
                    self.stop()
                case _ if self._leaving:
                    self._reply(envelope, self._parting())
                case CreateAdapter() | ListAdapters() | ListTenants() | DescribeModel() | Echo():
                    self._handle(envelope, (), partial(self._control, envelope))
                case OpenLane() as request:
                    self._handle(envelope, [request.adapter], partial(self._control, envelope))
                case DeleteCheckpoint() as request:
                    self._turns.settle_of(request.adapter)
                    self._handle(envelope, [request.adapter], partial(self._control, envelope))
                case DeleteAdapter() | UnloadAdapter() as request:
                    self._handle(envelope, [request.adapter], partial(self._let_go, envelope, request))
                case DropVersion() as request:
                    self._handle(envelope, (), partial(self._drop, request))
                case body if isinstance(body, Operation):
                    self._handle(envelope, [body.adapter], partial(self._admit, envelope, body))
                case other:
                    self._reply(envelope, failed(NotSupported(f"a trainer does not do {other.kind}")))

    def _handle(
        self, envelope: Envelope, touched: Sequence[AdapterId], work: Callable[[], Message | None]
    ) -> None:
        reply = self._boundary.outcome(envelope, touched, work)
        if reply is not None:
            self._reply(envelope, reply)

    def _control(self, envelope: Envelope) -> None:
        self._send(self._desk.answer(envelope, time.monotonic()))

    def _let_go(self, envelope: Envelope, request: DeleteAdapter | UnloadAdapter) -> None:
        adapter = self._adapters.owned(envelope.tenant, request.adapter).id
        self._turns.settle_of(adapter)
        self._batches.abandon(adapter)
        for queued in self._lanes.queues.of(adapter):
            queued.ran = 0  # should the adapter stay after all, it begins anew
        self._control(envelope)
        self._schedule.gone(adapter)

    def _admit(self, envelope: Envelope, operation: Operation) -> None:
        adapter = self._adapters.owned(envelope.tenant, operation.adapter)
        if not self._lanes.knows(operation):
            raise _lane_lost(adapter)
        settled = self._lanes.admit(envelope, operation, fingerprint(operation), time.monotonic())
        self._send(settled)
        if not settled:
            self._notices.arrived(envelope, operation)

    def _drop(self, request: DropVersion) -> None:
        try:
            self._adapters.versions.drop(request.adapter, request.version)
        except StorageFailed as error:
            # Nobody waits for an answer; the next start finds the version and serves it again.
            log.warning("version.not_dropped", adapter=request.adapter, reason=error.message)

    def _send(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._reply(answer.to, answer.body, last=answer.last)

    def _reply(self, to: Envelope, body: Message, *, last: bool = True) -> None:
        if to.request != NO_REQUEST:  # what the broker itself says asks for no answer
            self._link.reply(to, body, last)

    # --- leaving -----------------------------------------------------------------------------

    def _leave(self) -> None:
        """Answer all that waits, then save. Whoever sends on is answered until the link closes."""
        self._turns.settle(wait=True)
        self._jobs.close()
        self._send([*self._lanes.close_all(self._parting()), *self._desk.close(self._parting())])
        self._take_in(self._link.receive(0.0))
        for adapter in self._adapters.all():
            if adapter.id not in self._boundary.suspects:
                self._save(adapter)
        self._take_in(self._link.receive(0.0))

    def _save(self, adapter: Adapter) -> None:
        work = partial(self._adapters.save_unsaved, adapter)
        trouble = self._boundary.outcome(_OURS, [adapter.id], work)
        if isinstance(trouble, Failed):
            log.error("adapter.not_saved", adapter=adapter.id, reason=trouble.message)

    def _parting(self) -> Message:
        if self._boundary.broken:
            return failed(ActorRestarting("the trainer restarts after a failure; this operation did not run"))
        return failed(ActorStopping("the trainer is stopping; this operation did not run"))


def _lane_lost(adapter: Adapter) -> LaneLost:
    return LaneLost(
        "this lane is not known any more, for the trainer restarted or let go of the adapter: "
        f"adapter {adapter.record.name!r} is at step {adapter.window.step} without gradients; "
        "open a new lane and go on from there"
    )
