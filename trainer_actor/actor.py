"""The mailbox loop: receive all that waits, admit, have a turn planned, run it, reply.

What comes in is taken in by `intake`; `turns` carries out what `schedule` decided.

A deliberate error is answered and the loop lives. After a bug (see `boundary`) everyone who waits
reads that the trainer restarts, and the process ends with status 1 so that the supervisor starts a
sound one. Before any end, clean or not, what would run again after it is snapshotted, as far as time allows.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from ..bus.actor_link import ActorLink
from ..bus.config import Config
from ..bus.crash_points import crash_point
from ..bus.errors import ActorRestarting, ActorStopping
from ..bus.failures import failed
from ..bus.identities import NO_REQUEST
from ..bus.ids import AdapterId
from ..bus.layout import StateLayout
from ..bus.messages import Drain, Envelope, Message
from .accounts import Accounts
from .adapters import Adapters
from .batches import Batches
from .boundary import OURS, Boundary
from .desk import Desk
from .disk_jobs import LOOK_S, DiskJobs
from .engine import TrainEngine
from .in_hand import InHand
from .intake import Intake
from .lanes import Answer, Lanes
from .notices import Notices
from .operations import Operations
from .plan import Turn
from .schedule import Schedule
from .snapshotting import Snapshotting
from .turns import Turns

log = structlog.get_logger()

# The loop turns at least this often, so that whoever watches it sees it live.
_IDLE_S = 1.0


class TrainerActor:
    def __init__(
        self, config: Config, link: ActorLink, engine: TrainEngine, adapters: Adapters, in_hand: InHand
    ) -> None:
        self._link = link
        self._in_hand = in_hand
        self._model = engine.details
        self._ranks = f", {config.trainer.ranks} ranks" if config.trainer.ranks > 1 else ""
        self._adapters = adapters
        batches = Batches(engine, adapters)
        self._lanes = Lanes(
            gap_timeout_s=config.trainer.lane_gap_timeout_s,
            kept_bytes=config.limits.outcome_bytes,
            pass_tokens=engine.pass_tokens,
            max_ahead=max(config.limits.inflight_per_tenant, 1024),
            suspects=in_hand.suspects,
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
        self._jobs = DiskJobs(link.turn, link.strand())
        engine.tell_progress(link.turn)
        self._snapshots = Snapshotting(
            config,
            link.actor,
            adapters=adapters,
            lanes=self._lanes,
            jobs=self._jobs,
            boundary=self._boundary,
            report=link.report,
            answer=self._send,
        )
        self._turns = Turns(
            lanes=self._lanes,
            schedule=self._schedule,
            adapters=adapters,
            batches=batches,
            operations=Operations(config, engine, adapters),
            accounts=accounts,
            jobs=self._jobs,
            boundary=self._boundary,
            in_hand=in_hand,
            snapshots=self._snapshots,
            answer=self._send,
            alive=link.turn,
        )
        self._intake = Intake(
            adapters=adapters,
            lanes=self._lanes,
            desk=self._desk,
            turns=self._turns,
            batches=batches,
            jobs=self._jobs,
            schedule=self._schedule,
            notices=self._notices,
            boundary=self._boundary,
            in_hand=in_hand,
            snapshots=self._snapshots,
            answer=self._send,
        )
        self._stopped_at: float | None = None

    @classmethod
    def build(cls, config: Config, link: ActorLink, engine: TrainEngine) -> Self:
        """Find what the disk holds, and put the parts together."""
        layout = StateLayout(Path(config.state_dir))
        return cls(config, link, engine, Adapters.open(config, layout, engine), InHand.open(layout.in_hand))

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status of the process."""
        details = f"{self._model.name}, {self._model.dtype}, {self._model.parameters} parameters{self._ranks}"
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
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()

    @property
    def _leaving(self) -> bool:
        return self._stopped_at is not None or self._boundary.broken

    def _run_next(self, now: float) -> float:
        """Run the next turn, if there is one. Returns for how many seconds there is nothing to do then."""
        self._turns.settle()
        self._snapshots.settle(now)
        self._intake.resume()
        self._snapshots.turn(now)
        if self._leaving:
            return 0.0
        room, disk_is_free = self._adapters.residents.room(), self._jobs.under_way is None
        decision = self._schedule.next_turn(room, now, disk_is_free=disk_is_free)
        if isinstance(decision, Turn):
            self._turns.run(decision)
            if not self._leaving:
                # A daemon that is never done needs the memory most. One at a time: a turn waits for it.
                self._boundary.outcome(OURS, (), partial(self._sink_one, now))
            return 0.0
        self._boundary.outcome(OURS, (), partial(self._adapters.sink_idle, now, self._busy))
        dues = (
            self._lanes.next_expiry(),
            self._desk.next_due(),
            self._snapshots.next_due(),
            decision.until if decision else None,
        )
        idle_s = _IDLE_S if disk_is_free and not self._snapshots.busy else LOOK_S
        return min(idle_s, *(max(due - now, 0.0) for due in dues if due is not None), idle_s)

    def _sink_one(self, now: float) -> None:
        self._adapters.sink_one(now, self._busy)

    def _busy(self, adapter: AdapterId) -> bool:
        return self._lanes.queued(adapter) > 0

    def _waits_for(self, adapter: AdapterId) -> str:
        return self._notices.of(adapter, time.monotonic())

    def _take_in(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            if isinstance(envelope.body, Drain):
                self.stop()
            elif self._leaving:
                self._reply(envelope, self._parting())
            else:
                self._link.turn(f"a {envelope.body.kind} that came in")
                self._intake.take_in(envelope)

    def _send(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._reply(answer.to, answer.body, last=answer.last)

    def _reply(self, to: Envelope, body: Message, *, last: bool = True) -> None:
        if to.request != NO_REQUEST:  # what the broker itself says asks for no answer
            self._link.reply(to, body, last)
            crash_point("trainer.replied")

    # --- leaving -----------------------------------------------------------------------------

    def _leave(self) -> None:
        """Answer all that waits, then save. Whoever sends on is answered until the link closes."""
        since = time.monotonic() if self._stopped_at is None else self._stopped_at
        self._turns.settle(wait=True)
        self._snapshots.close(self._parting())
        self._jobs.close()
        self._send([*self._lanes.close_all(self._parting()), *self._desk.close(self._parting())])
        self._send(self._intake.close(self._parting()))
        self._take_in(self._link.receive(0.0))
        self._snapshots.take_last(since)
        self._take_in(self._link.receive(0.0))
        if not self._boundary.broken:  # else the note says what it was at
            self._in_hand.close()

    def _parting(self) -> Message:
        if self._boundary.broken:
            return failed(ActorRestarting("the trainer restarts after a failure; this operation did not run"))
        return failed(ActorStopping("the trainer is stopping; this operation did not run"))
