"""Bringing adapters back to where they were when the trainer has started again. Pure.

An adapter is recovered before the trainer gets anything else of it: from its newest snapshot in the
journal, then by running again what it did since, in the order in which it had ended. Those with something
to run again begin at once, others when they are next asked for. Meanwhile what is new of them waits here.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..bus.codec import Header, decode, encode, peek
from ..bus.config import LimitsConfig
from ..bus.errors import CheckpointMismatch
from ..bus.ids import NO_ADAPTER, ActorId, AdapterId, RequestId
from ..bus.messages import (
    Envelope,
    Failed,
    ForwardBackward,
    ImportWeights,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    RecoverAdapter,
    RefuseOperation,
    SkipOperation,
)
from .compositions import as_it_ran
from .decisions import Decision, Forward, Frames, Key, Say, WriteDown
from .journal.records import Damaged, Logged, Past
from .ledger import Ticket
from .replay import OURS, order_of

# What changes an adapter's state; everything else is done once its outcome is known.
_RUNS_AGAIN = frozenset(
    request.kind for request in (ForwardBackward, OptimStep, LoadCheckpoint, LoadVersion, ImportWeights)
)
# Operations of one adapter that are with the trainer at one time while it runs them again.
_AT_A_TIME = 64
_TRIES = 3
WAITS = "the trainer was started again and brings the adapter back to where it was"


class Step(NamedTuple):
    """What to do, and tickets that may go to the trainer now."""

    decisions: list[Decision]
    released: list[Ticket]


@dataclass(slots=True)
class _Replay:
    """asked: the RecoverAdapter under way. todo: to run again, with_trainer: is being run. last: follows when
    that is done, and is not waited for."""

    tries: int = 1
    asked: Key | None = None
    snapshot: str = ""
    todo: deque[Logged] = field(default_factory=deque)
    with_trainer: dict[Key, Logged] = field(default_factory=dict)
    last: Sequence[Logged] = ()


class Recovery:
    """past: what the journal holds; None: nothing is ever recovered. find: the ticket of a request under way."""

    def __init__(self, past: Past | None, limits: LimitsConfig, find: Callable[[Key], Ticket | None]) -> None:
        self._past = past
        self._find = find
        self._limits = limits
        self._trainer: ActorId | None = None
        self._live: set[AdapterId] = set()
        self._replays: dict[AdapterId, _Replay] = {}
        self._parked: dict[AdapterId, list[Ticket]] = {}
        self._keys: dict[Key, AdapterId] = {}
        self._broken: dict[AdapterId, str] = {}
        self._asked = 0

    @property
    def trainer(self) -> ActorId | None:
        """The trainer, while one is ready."""
        return self._trainer

    # --- requests that wait for it ---------------------------------------------------------------

    def lets(self, adapter: AdapterId) -> bool:
        """Whether the trainer has the adapter as it was, so that its requests may go."""
        return self._past is None or adapter == NO_ADAPTER or adapter in self._live

    def broken(self, adapter: AdapterId) -> str:
        """Why it could not be recovered; "" where it could."""
        return self._broken.get(adapter, "")

    def park(self, ticket: Ticket) -> None:
        """Keep a request until its adapter is recovered."""
        ticket.parked = True
        self._parked.setdefault(ticket.adapter, []).append(ticket)

    def unpark(self, ticket: Ticket) -> None:
        ticket.parked = False
        waiting = self._parked[ticket.adapter]
        waiting.remove(ticket)
        if not waiting:
            del self._parked[ticket.adapter]

    def parked(self) -> list[Ticket]:
        """All that wait."""
        return [ticket for waiting in self._parked.values() for ticket in waiting]

    def begin(self, adapter: AdapterId) -> Step:
        """Recover an adapter, unless that is under way or there is no trainer."""
        if self._trainer is None or adapter in self._replays or adapter in self._live:
            return Step([], [])
        return self._start(adapter, tries=1)

    # --- the trainer comes and goes --------------------------------------------------------------

    def trainer_ready(self, trainer: ActorId) -> Step:
        """Begin with every adapter that has something to run."""
        if self._past is None:
            return Step([], [])
        self._forget()
        self._trainer = trainer
        decisions: list[Decision] = []
        released: list[Ticket] = []
        for adapter in dict.fromkeys([*self._past.adapters(), *self._parked]):
            step = self._start(adapter, tries=1)
            decisions += step.decisions
            released += step.released
        return Step(decisions, released)

    def trainer_lost(self) -> None:
        self._forget()

    def heard(self, header: Header, frames: Frames) -> Step | None:
        """An answer of the trainer; None when it is to no request of this module's."""
        key = (header.tenant, header.request)
        adapter = self._keys.get(key)
        if adapter is None:
            return None
        if not header.last:  # it says that it waits for its turn
            return Step([], [])
        del self._keys[key]
        replay = self._replays[adapter]
        if key == replay.asked:
            return self._recovered(adapter, replay, header, frames)
        return self._ran_again(adapter, replay, replay.with_trainer.pop(key), header, frames)

    def written(self, damaged: Damaged) -> Step:
        """The journal knows that a snapshot is damaged: there may be one before it."""
        replay = self._replays.get(damaged.adapter)
        return self._start(damaged.adapter, replay.tries) if replay is not None else Step([], [])

    # --- one adapter -----------------------------------------------------------------------------

    def _start(self, adapter: AdapterId, tries: int) -> Step:
        assert self._past is not None
        assert self._trainer is not None
        snapshot = self._past.snapshot(adapter)
        if snapshot is None and not self._past.begins(adapter):
            # Made before there was a journal, or not there at all: the trainer knows which.
            return self._done(adapter)
        self._asked += 1
        replay = _Replay(tries=tries, asked=(OURS, RequestId(f"recover-{self._asked}")))
        replay.snapshot = snapshot.name if snapshot is not None else ""
        lanes = tuple(self._past.lanes(adapter))
        order = order_of(self._past.after(adapter), lanes, is_over=self._is_over, code_of=self._code_of)
        replay.todo.extend(order.first)
        replay.last = order.last
        self._replays[adapter] = replay
        assert replay.asked is not None
        self._keys[replay.asked] = adapter
        body = RecoverAdapter(adapter=adapter, snapshot=replay.snapshot, lanes=lanes)
        return Step([self._to_trainer(replay.asked, body)], [])

    def _recovered(self, adapter: AdapterId, replay: _Replay, header: Header, frames: Frames) -> Step:
        replay.asked = None
        if header.kind != Failed.kind:
            return self._go_on(adapter, replay)
        failure = decode(frames, self._limits).body
        assert isinstance(failure, Failed)
        if failure.code == CheckpointMismatch.code and replay.snapshot:
            said = {"adapter": adapter, "snapshot": replay.snapshot, "reason": failure.message}
            damaged = Damaged(adapter=adapter, name=replay.snapshot)
            return Step([Say("snapshot.damaged", said), WriteDown(damaged)], [])
        if failure.code == "adapter_not_found":
            return self._done(adapter)
        return self._failed(adapter, replay, failure.message)

    def _ran_again(
        self, adapter: AdapterId, replay: _Replay, logged: Logged, header: Header, frames: Frames
    ) -> Step:
        assert self._past is not None
        if self._runs_again(logged):
            if header.kind == Failed.kind:
                failure = decode(frames, self._limits).body
                assert isinstance(failure, Failed)
                return self._failed(adapter, replay, f"{logged.kind} failed: {failure.message}")
            if logged.order is not None and not self._same(logged, frames):
                said: dict[str, object] = {"adapter": adapter, "kind": logged.kind, "seq": logged.seq}
                step = self._go_on(adapter, replay)
                return Step([Say("replay.differs", said), *step.decisions], step.released)
        return self._go_on(adapter, replay)

    def _go_on(self, adapter: AdapterId, replay: _Replay) -> Step:
        decisions: list[Decision] = []
        while replay.todo and len(replay.with_trainer) < _AT_A_TIME:
            logged = replay.todo.popleft()
            replay.with_trainer[logged.key] = logged
            self._keys[logged.key] = adapter
            decisions.append(self._again(logged))
        if replay.with_trainer:
            return Step(decisions, [])
        return self._done(adapter)

    def _again(self, logged: Logged) -> Decision:
        """What stands for an operation when it comes again: itself, or what it did to its lane."""
        assert self._past is not None
        assert self._trainer is not None
        if not self._is_over(logged) or self._runs_again(logged):
            return Forward(self._trainer, self._request(logged))
        if logged.failed:
            failure = self._failure(logged)
            refused = RefuseOperation(
                adapter=logged.adapter,
                lane=logged.lane,
                seq=logged.seq,
                code=failure.code,
                message=failure.message,
            )
            return self._to_trainer(logged.key, refused)
        skipped = SkipOperation(adapter=logged.adapter, lane=logged.lane, seq=logged.seq)
        return self._to_trainer(logged.key, skipped)

    def _request(self, logged: Logged) -> Frames:
        """An operation as it came; one that ran, to run in the same passes again."""
        assert self._past is not None
        ticket = self._find(logged.key)  # the journal may still be at writing its outcome down
        ended = ticket.outcome if ticket is not None else None
        if logged.order is not None:
            ended = self._past.outcome(logged.number)
        return as_it_ran(self._past.request(logged.number), ended, self._limits)

    def _runs_again(self, logged: Logged) -> bool:
        assert self._past is not None
        if logged.failed or logged.kind not in _RUNS_AGAIN or not self._is_over(logged):
            return False
        if logged.kind != ForwardBackward.kind:
            return True
        header = peek(self._past.request(logged.number)[0], self._limits)
        return header.fields.get("forward_only") is not True

    def _failure(self, logged: Logged) -> Failed:
        assert self._past is not None
        failure = decode(self._past.outcome(logged.number), self._limits).body
        assert isinstance(failure, Failed)
        return failure

    def _code_of(self, logged: Logged) -> str:
        return self._failure(logged).code

    def _same(self, logged: Logged, frames: Frames) -> bool:
        assert self._past is not None
        return [bytes(frame) for frame in frames] == [*map(bytes, self._past.outcome(logged.number))]

    def _failed(self, adapter: AdapterId, replay: _Replay, reason: str) -> Step:
        self._let_go(adapter)
        said = Say("recovery.failed", {"adapter": adapter, "reason": reason, "tries": replay.tries})
        if replay.tries < _TRIES:
            step = self._start(adapter, replay.tries + 1)
            return Step([said, *step.decisions], step.released)
        self._broken[adapter] = reason
        return Step([said], self._release(adapter))

    def _done(self, adapter: AdapterId) -> Step:
        replay = self._let_go(adapter)
        self._live.add(adapter)
        last = [self._again(logged) for logged in replay.last] if replay is not None else []
        return Step(last, self._release(adapter))

    def _release(self, adapter: AdapterId) -> list[Ticket]:
        released = sorted(self._parked.pop(adapter, []), key=lambda ticket: ticket.number)
        for ticket in released:
            ticket.parked = False
        return released

    # --- small change ----------------------------------------------------------------------------

    def _is_over(self, logged: Logged) -> bool:
        """Whether the trainer is done with it, also where the journal has no outcome yet. All others come by
        themselves, from where they wait."""
        ticket = self._find(logged.key) if logged.order is None else None
        return ticket is None or ticket.written_version or ticket.outcome is not None

    def _to_trainer(self, key: Key, body: Message) -> Decision:
        assert self._trainer is not None
        tenant, request = key
        return Forward(self._trainer, encode(Envelope(request=request, tenant=tenant, body=body)))

    def _let_go(self, adapter: AdapterId) -> _Replay | None:
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
