"""Bringing adapters back to where they were when the trainer has started again. Pure.

An adapter is recovered before the trainer gets anything else of it: from its newest snapshot in the
journal, then by running again what it did since, in the order in which it had ended. Those with something
to run again begin at once, others when they are next asked for. Meanwhile what is new of them waits here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ..bus.codec import Header, decode
from ..bus.config import LimitsConfig
from ..bus.errors import (
    AdapterNotFound,
    AnotherBase,
    CheckpointMismatch,
    Internal,
    LoractlError,
    RecoveryFailed,
)
from ..bus.ids import NO_ADAPTER, ActorId, AdapterId, RequestId, TenantId
from ..bus.messages import Failed, RecoverAdapter
from .answers import left_alone, notice, recovery_failed
from .decisions import Decision, Forward, Frames, Key, Say, WriteDown
from .harm import Harm
from .journal.records import Damaged, Harmed, Logged, Past
from .ledger import Ticket
from .parking import Parking
from .pauses import PARTING, Pauses, may_pass
from .replay import OURS
from .rerun import Replay, Rerun, enveloped, replay_of

_TRIES = 3
WAITS = "the trainer was started again and brings the adapter back to where it was"


class Step(NamedTuple):
    """What to do, and tickets that may go to the trainer now."""

    decisions: Sequence[Decision]
    released: Sequence[Ticket]


NOTHING = Step((), ())


class Recovery:
    """past: what the journal holds; None: nothing is ever recovered. find: the ticket of a request under way.
    retry: bring back once more what is quarantined."""

    def __init__(
        self,
        past: Past | None,
        limits: LimitsConfig,
        find: Callable[[Key], Ticket | None],
        *,
        retry: bool = False,
    ) -> None:
        self._past = past
        self._find = find
        self._limits = limits
        self._trainer: ActorId | None = None
        self._live: set[AdapterId] = set()
        self._replays: dict[AdapterId, Replay] = {}
        self.parking = Parking()
        self._keys: dict[Key, AdapterId] = {}
        self._broken: dict[AdapterId, str] = {}
        # With which the trainer hit a bug: it dies of them.
        self._bugs: list[AdapterId] = []
        self._pauses = Pauses()
        self._harm = Harm(past.harmed() if past is not None else {}, retry=retry)
        self._asked = 0

    @property
    def trainer(self) -> ActorId | None:
        """The trainer, while one is ready."""
        return self._trainer

    # --- requests that wait for it ---------------------------------------------------------------

    def lets(self, adapter: AdapterId) -> bool:
        """Whether the trainer has the adapter as it was, so that its requests may go."""
        return self._past is None or adapter == NO_ADAPTER or adapter in self._live

    def never(self, adapter: AdapterId) -> RecoveryFailed | None:
        """Why it is not brought back before the daemon is started again; None where it is."""
        if self._harm.quarantined(adapter):
            return left_alone()
        reason = self._broken.get(adapter)
        return recovery_failed(reason) if reason is not None else None

    def harmed(self, adapter: AdapterId) -> Harmed:
        """What is to be written down of the trainer's deaths with it, as it stands now."""
        return self._harm.record(adapter)

    def takes_snapshot(self, adapter: AdapterId) -> bool:
        """Whether one that the trainer took may count."""
        replay = self._replays.get(adapter)
        return adapter in self._live if replay is None else replay.takes_snapshot

    def waits(self, adapter: AdapterId) -> str:
        """What requests wait for until then, in words."""
        reason = self._pauses.reason(adapter)
        return f"{WAITS}; that is not possible just now and is tried again: {reason}" if reason else WAITS

    def elsewhere(self, adapter: AdapterId, owner: TenantId) -> AnotherBase | None:
        """Why there is nothing of an adapter here, to its owner, where it waits on disk for its base model."""
        reason = self._pauses.elsewhere.get(adapter)
        if self._past is None or reason is None or self._past.owner(adapter) != owner:
            return None
        return AnotherBase(reason)

    def begin(self, adapter: AdapterId, now: float) -> Step:
        """Recover an adapter, unless that is under way or there is no trainer."""
        under_way = adapter in self._replays or adapter in self._live or self._pauses.lasts(adapter)
        return NOTHING if self._trainer is None or under_way else self._start(adapter, 1, now)

    def gone(self, adapter: AdapterId) -> Step:
        """It was deleted: whatever still waits hears of that from the trainer."""
        self._harm.gone(adapter)
        self._broken.pop(adapter, None)
        self._pauses.end(adapter)
        if self._trainer is None or adapter in self._live or adapter in self._replays:
            return NOTHING
        return self._done(adapter)

    def put_off(self, adapter: AdapterId, reason: str, code: str, now: float) -> list[Decision]:
        """It cannot be brought back just now, and that may pass."""
        self._let_go(adapter)
        self._live.discard(adapter)
        self._pauses.begin(adapter, reason, code, now)
        decisions: list[Decision] = [Say("recovery.put_off", {"adapter": adapter, "reason": reason})]
        for ticket in self.parking.of(adapter):
            ticket.waits_for = self.waits(adapter)
            decisions += [notice(client, ticket) for client in ticket.waiters]
        return decisions

    def all_put_off(self) -> Counter[str]:
        """How many adapters are, by the code of what stood in the way."""
        return self._pauses.codes()

    # --- time ------------------------------------------------------------------------------------

    def due(self, now: float) -> Step:
        """Try again what was put off."""
        return self._start_all(self._pauses.take_over(now), now)

    def next_due(self) -> float:
        return self._pauses.next_due()

    # --- the trainer comes and goes --------------------------------------------------------------

    def trainer_ready(self, trainer: ActorId, now: float) -> Step:
        """Begin with every adapter that has something to run."""
        if self._past is None:
            return NOTHING
        self._forget()
        self._trainer = trainer
        return self._start_all(dict.fromkeys([*self._past.adapters(), *self.parking.adapters()]), now)

    def trainer_lost(self, in_hand: Collection[Key], weight: int) -> list[Decision]:
        """What it had in hand and ran again counts against its adapters."""
        blamed = [*self._bugs, *(self._keys[key] for key in in_hand if key in self._keys)]
        self._forget()
        return self._harm.died(blamed, weight)

    def heard(self, actor: ActorId, header: Header, frames: Frames, now: float) -> Step | None:
        """An answer of the trainer; None when it is to no request of this module's."""
        key = (header.tenant, header.request)
        adapter = self._keys.get(key)
        if adapter is None or actor != self._trainer:
            return None
        replay = self._replays[adapter]
        if not header.last or replay.parted:  # it says that it waits for its turn, or leaves
            return NOTHING
        failure = decode(frames, self._limits).body if header.kind == Failed.kind else None
        assert failure is None or isinstance(failure, Failed)
        if failure is not None and failure.code in (*PARTING, Internal.code):
            replay.parted = True
            self._bugs += [adapter] if failure.code == Internal.code else []
            return NOTHING
        del self._keys[key]
        try:
            if key == replay.asked:
                return self._recovered(adapter, replay, failure, now)
            return self._ran_again(adapter, replay, replay.with_trainer.pop(key), failure, frames, now)
        except LoractlError as error:  # of reading the journal, as in `_start`
            return Step(self.put_off(adapter, error.message, error.code, now), [])

    def written(self, damaged: Damaged, now: float) -> Step:
        """The journal knows that a snapshot is damaged: there may be one before it."""
        replay = self._replays.get(damaged.adapter)
        return self._start(damaged.adapter, replay.tries, now) if replay is not None else NOTHING

    # --- one adapter -----------------------------------------------------------------------------

    def _start_all(self, adapters: Iterable[AdapterId], now: float) -> Step:
        steps = [self._start(adapter, 1, now) for adapter in adapters]
        decisions = [decision for step in steps for decision in step.decisions]
        return Step(decisions, [ticket for step in steps for ticket in step.released])

    def _start(self, adapter: AdapterId, tries: int, now: float) -> Step:
        try:
            return self._ask(adapter, tries)
        except LoractlError as error:  # of reading the journal: it is this adapter's alone
            return Step(self.put_off(adapter, error.message, error.code, now), [])

    def _ask(self, adapter: AdapterId, tries: int) -> Step:
        past = self._past
        assert past is not None
        if self._harm.quarantined(adapter):
            return Step((), self.parking.release(adapter))
        if adapter == NO_ADAPTER or (replay := replay_of(past, adapter, self._rerun())) is None:
            # Nobody's, made before there was a journal, or not there at all: the trainer knows which.
            return self._done(adapter)
        self._asked += 1
        replay.tries = tries
        replay.asked = asked = (OURS, RequestId(f"recover-{self._asked}"))
        self._replays[adapter] = replay
        self._keys[asked] = adapter
        body = RecoverAdapter(adapter=adapter, snapshot=replay.snapshot, lanes=replay.lanes)
        return Step([self._to_trainer(enveloped(asked, body))], [])

    def _recovered(self, adapter: AdapterId, replay: Replay, failure: Failed | None, now: float) -> Step:
        replay.asked = None
        if failure is None:
            return self._go_on(adapter, replay)
        if failure.code == CheckpointMismatch.code and replay.snapshot:
            said = {"adapter": adapter, "snapshot": replay.snapshot, "reason": failure.message}
            damaged = Damaged(adapter=adapter, name=replay.snapshot)
            return Step([Say("snapshot.damaged", said), WriteDown(damaged)], [])
        if failure.code == AdapterNotFound.code:
            return self._done(adapter)
        return self._failed(adapter, replay, failure, failure.message, now)

    def _ran_again(
        self,
        adapter: AdapterId,
        replay: Replay,
        logged: Logged,
        failure: Failed | None,
        frames: Frames,
        now: float,
    ) -> Step:
        rerun = self._rerun()
        if not rerun.runs(logged):
            return self._go_on(adapter, replay)
        if failure is not None:
            return self._failed(adapter, replay, failure, f"{logged.kind} failed: {failure.message}", now)
        step = self._go_on(adapter, replay)
        if logged.order is None or rerun.same(logged, frames):
            return step
        said: dict[str, object] = {"adapter": adapter, "kind": logged.kind, "seq": logged.seq}
        return Step([Say("replay.differs", said), *step.decisions], step.released)

    def _go_on(self, adapter: AdapterId, replay: Replay) -> Step:
        decisions: list[Decision] = []
        while replay.may_go_on:
            logged = replay.todo.popleft()
            replay.with_trainer[logged.key] = logged
            self._keys[logged.key] = adapter
            decisions.append(self._to_trainer(self._rerun().frames(logged)))
        if replay.with_trainer:
            return Step(decisions, [])
        return self._done(adapter)

    def _failed(self, adapter: AdapterId, replay: Replay, failure: Failed, reason: str, now: float) -> Step:
        if may_pass(failure):
            return Step(self.put_off(adapter, reason, failure.code, now), [])
        self._let_go(adapter)
        said = Say("recovery.failed", {"adapter": adapter, "reason": reason, "tries": replay.tries})
        if replay.tries < _TRIES:
            step = self._start(adapter, replay.tries + 1, now)
            return Step([said, *step.decisions], step.released)
        self._broken[adapter] = reason
        return Step([said], self.parking.release(adapter))

    def _done(self, adapter: AdapterId) -> Step:
        replay = self._replays.get(adapter)
        last = replay.last if replay is not None else ()
        sent = [self._to_trainer(self._rerun().frames(logged)) for logged in last]
        self._let_go(adapter)
        self._live.add(adapter)
        self._pauses.end(adapter)
        return Step([*self._harm.brought_back(adapter), *sent], self.parking.release(adapter))

    # --- small change ----------------------------------------------------------------------------

    def _rerun(self) -> Rerun:
        assert self._past is not None
        return Rerun(self._past, self._limits, self._find)

    def _to_trainer(self, frames: Frames) -> Decision:
        assert self._trainer is not None
        return Forward(self._trainer, frames)

    def _let_go(self, adapter: AdapterId) -> Replay | None:
        replay = self._replays.pop(adapter, None)
        if replay is not None:
            for key in (*replay.with_trainer, replay.asked):
                if key is not None:
                    self._keys.pop(key, None)
        return replay

    def _forget(self) -> None:
        self._trainer = None
        self._live.clear()
        self._replays.clear()
        self._keys.clear()
        self._broken.clear()
        self._bugs.clear()
        self._pauses.clear()
