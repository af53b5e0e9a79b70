"""The mailbox loop: receive all that waits, admit, plan a turn, run it, reply.

What is asked of adapters outside of their lanes is answered by `desk`.

A deliberate error is answered and the loop lives. After a bug (see `boundary`) everyone who waits
reads that the trainer restarts, and the process ends with status 1 so that the supervisor starts a
sound one. Before any end, clean or not, what a restart would lose is saved.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
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
    ForwardBackward,
    ListAdapters,
    Message,
    ModelDetails,
    OpenLane,
    UnloadAdapter,
)
from .adapters import Adapter, Adapters
from .boundary import Boundary
from .desk import Desk, Request
from .engine import TrainEngine
from .fingerprint import fingerprint
from .lanes import Answer, Lanes, Operation, Queued
from .notices import Notices
from .operations import Operations
from .plan import Turn, next_turn

log = structlog.get_logger()

# The loop turns at least this often, so that whoever watches it sees it live.
_IDLE_S = 1.0


class TrainerActor:
    def __init__(
        self,
        config: Config,
        link: ActorLink,
        model: ModelDetails,
        adapters: Adapters,
        operations: Operations,
    ) -> None:
        self._link = link
        self._model = model
        self._adapters = adapters
        self._operations = operations
        self._lanes = Lanes(
            gap_timeout_s=config.trainer.lane_gap_timeout_s,
            kept_bytes=config.limits.outcome_bytes,
            max_ahead=max(config.limits.inflight_per_tenant, 1024),
        )
        self._desk = Desk(model, adapters, self._lanes)
        self._notices = Notices()
        self._boundary = Boundary()
        self._stopping = False

    @classmethod
    def build(cls, config: Config, link: ActorLink, engine: TrainEngine) -> Self:
        """Find what the disk holds, and put the parts together."""
        adapters = Adapters.open(config, StateLayout(Path(config.state_dir)), engine)
        return cls(config, link, engine.details, adapters, Operations(config, engine, adapters))

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status of the process."""
        details = f"{self._model.name}, {self._model.dtype}, {self._model.parameters} parameters"
        self._link.ready(details, self._adapters.versions.all(), len(self._adapters))
        while not self._leaving:
            self._take_in(self._link.receive(self._patience_s()))
            self._send(self._lanes.expire(time.monotonic()))
            self._send(self._notices.due(self._lanes), last=False)
            if not self._leaving and (turn := next_turn(self._lanes.runnable())):
                self._run_turn(turn)
        self._leave()
        return 1 if self._boundary.broken else 0

    def stop(self) -> None:
        """Leave after the turn in hand, as `Drain` does. Safe to call from a signal handler."""
        self._stopping = True

    @property
    def _leaving(self) -> bool:
        return self._stopping or self._boundary.broken

    def _patience_s(self) -> float:
        if self._lanes.runnable():
            return 0.0
        expiry = self._lanes.next_expiry()
        return _IDLE_S if expiry is None else min(max(expiry - time.monotonic(), 0.0), _IDLE_S)

    # --- taking in ---------------------------------------------------------------------------

    def _take_in(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            match envelope.body:
                case Drain():
                    self.stop()
                case _ if self._leaving:
                    self._reply(envelope, self._parting())
                case CreateAdapter() | ListAdapters() | DescribeModel() | Echo() as request:
                    self._handle(envelope, (), partial(self._control, envelope, request))
                case OpenLane() | DeleteAdapter() | UnloadAdapter() | DeleteCheckpoint() as request:
                    self._handle(envelope, [request.adapter], partial(self._control, envelope, request))
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

    def _control(self, envelope: Envelope, request: Request) -> Message:
        outcome = self._desk.answer(envelope.tenant, request)
        self._send(outcome.others)
        return outcome.answer

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

    # --- running -----------------------------------------------------------------------------

    def _run_turn(self, turn: Turn) -> None:
        shares = [self._lanes.take(share.adapter, share.count) for share in turn.shares]
        leading = [
            (share.pop(0), operation)
            for share in shares
            if isinstance(operation := share[0].operation, ForwardBackward)
        ]
        if leading:
            self._run_pass(leading)
        for queued in chain.from_iterable(shares):
            if self._leaving:
                return  # what is left is answered with everything else that waits
            self._run_one(queued)

    def _run_pass(self, members: Sequence[tuple[Queued, ForwardBackward]]) -> None:
        """One pass over the base model for operations of different adapters."""
        outcomes: list[Message] = []

        def work() -> None:
            outcomes.extend(self._operations.run_pass([(q.askers[0].tenant, op) for q, op in members]))

        first, _ = members[0]
        touched = [operation.adapter for _, operation in members]
        crashed = self._boundary.outcome(first.askers[0], touched, work)
        if crashed is not None:
            outcomes = [crashed] * len(members)
        for (queued, _), outcome in zip(members, outcomes, strict=True):
            self._send(self._lanes.finish(queued, outcome))
        self._link.turn()

    def _run_one(self, queued: Queued) -> None:
        asker, operation = queued.askers[0], queued.operation
        work = partial(self._operations.run, asker.tenant, operation)
        outcome = self._boundary.outcome(asker, [operation.adapter], work)
        assert outcome is not None
        self._send(self._lanes.finish(queued, outcome))
        self._link.turn()

    def _send(self, answers: Sequence[Answer], *, last: bool = True) -> None:
        for answer in answers:
            self._reply(answer.to, answer.body, last=last)

    def _reply(self, to: Envelope, body: Message, *, last: bool = True) -> None:
        if to.request != NO_REQUEST:  # what the broker itself says asks for no answer
            self._link.reply(to, body, last)

    # --- leaving -----------------------------------------------------------------------------

    def _leave(self) -> None:
        """Answer all that waits, then save. Whoever sends on is answered until the link closes."""
        self._send(self._lanes.close_all(self._parting()))
        self._take_in(self._link.receive(0.0))
        for adapter in self._adapters.all():
            if adapter.id not in self._boundary.suspects:
                self._save(adapter)
        self._take_in(self._link.receive(0.0))

    def _save(self, adapter: Adapter) -> None:
        work = partial(self._adapters.save_unsaved, adapter)
        trouble = self._boundary.outcome(unsolicited(Drain()), [adapter.id], work)
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
