"""Ordered lanes: whatever order operations arrive in, a lane runs them as 1, 2, 3, …

Owns the reorder buffers; what has arrived in order goes to the `queues`. A sequence number
is used up whatever becomes of its operation; the same number with the same content is answered
with the same outcome and never runs twice. What operations do is left to `operations`, which of
them run next to `plan`. Pure: no sockets, and `now` is an argument.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..bus.errors import SequenceConflict, SequenceGap, SequenceOutOfRange
from ..bus.failures import failed
from ..bus.ids import AdapterId, LaneId
from ..bus.in_hand import Key
from ..bus.messages import Envelope, LanePosition, Message, RefuseOperation, SkipOperation
from .outcomes import Outcomes
from .queues import Operation, Queued, Queues


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that is now due. last False: more of it will follow."""

    to: Envelope
    body: Message
    last: bool = True


@dataclass(slots=True)
class _Lane:
    """expected: the lowest number that has not arrived. early: arrived behind a missing number.
    queued: in order, waiting for its turn or running."""

    adapter: AdapterId
    used: int
    expected: int = 1
    early: dict[int, Queued] = field(default_factory=dict)
    queued: dict[int, Queued] = field(default_factory=dict)


class Lanes:
    """All lanes of all adapters.

    pass_tokens: positions that run through the model at one time. max_ahead: how far beyond the next
    expected number an operation may be. lanes_per_adapter: when more are opened, the longest unused idle
    one is forgotten. Both bound the memory that a client can take. suspects: requests of which one may have
    ended the trainer before this one; each runs alone.
    """

    def __init__(
        self,
        *,
        gap_timeout_s: float,
        kept_bytes: int,
        pass_tokens: int = 1024,
        max_ahead: int = 4096,
        lanes_per_adapter: int = 64,
        suspects: Collection[Key] = (),
    ) -> None:
        self._gap_timeout_s = gap_timeout_s
        self._max_ahead = max_ahead
        self._lanes_per_adapter = lanes_per_adapter
        self._suspects = frozenset(suspects)
        self._lanes: dict[LaneId, _Lane] = {}
        self._by_adapter: dict[AdapterId, list[LaneId]] = {}
        self.queues = Queues(pass_tokens=pass_tokens)
        self._gap_since: dict[LaneId, float] = {}
        self._moved: dict[LaneId, None] = {}
        self._outcomes = Outcomes(kept_bytes=kept_bytes)
        self._uses = 0

    def open(self, adapter: AdapterId, lane: LaneId, next_seq: int = 1) -> None:
        """Open a lane that is not open, where its operation `next_seq` comes next."""
        assert lane not in self._lanes
        siblings = self._by_adapter.setdefault(adapter, [])
        self._forget_idle(siblings)
        siblings.append(lane)
        self._lanes[lane] = _Lane(adapter, self._next_use(), next_seq)

    def reopen(self, adapter: AdapterId, positions: Collection[LanePosition]) -> None:
        """Open lanes as they were, longest unused first: however many, for what they did since comes next."""
        for each in positions:
            assert each.lane not in self._lanes
            self._outcomes.forget(each.lane, each.next_seq)
            self._by_adapter.setdefault(adapter, []).append(each.lane)
            self._lanes[each.lane] = _Lane(adapter, self._next_use(), each.next_seq)

    def is_open(self, adapter: AdapterId, lane: LaneId) -> bool:
        return lane in self._by_adapter.get(adapter, ())

    def positions(self, adapter: AdapterId) -> tuple[LanePosition, ...]:
        """Of every open lane of an adapter, the lowest number that is not settled; longest unused first."""
        lanes = sorted(
            ((name, self._lanes[name]) for name in self._by_adapter.get(adapter, ())),
            key=lambda each: each[1].used,
        )
        return tuple(
            LanePosition(lane=name, next_seq=min(lane.queued, default=lane.expected)) for name, lane in lanes
        )

    def knows(self, operation: Operation) -> bool:
        """Whether the operation's lane is open, and on its adapter."""
        lane = self._lanes.get(operation.lane)
        return lane is not None and lane.adapter == operation.adapter

    def admit(self, envelope: Envelope, operation: Operation, fingerprint: bytes, now: float) -> list[Answer]:
        """Take in an operation of a known lane. Returns an answer only if it was settled before.

        Raises:
            SequenceConflict: its number was used with other content, or so long ago that the
                outcome is no longer kept.
            SequenceOutOfRange: its number is below 1 or too far ahead. The number is not used up.
        """
        assert self.knows(operation)
        lane, seq = self._lanes[operation.lane], operation.seq
        lane.used = self._next_use()
        if seq < 1 or seq > lane.expected + self._max_ahead:
            raise SequenceOutOfRange(
                f"seq {seq} is out of range: this lane expects {lane.expected}, "
                f"and takes up to {self._max_ahead} more"
            )
        if finished := self._outcomes.get(operation.lane, seq):
            if not finished.refusal or isinstance(operation, RefuseOperation):
                _check_same(finished.fingerprint, fingerprint, seq)
            return [Answer(envelope, finished.outcome)]
        if waiting := lane.early.get(seq) or lane.queued.get(seq):
            _check_same(waiting.fingerprint, fingerprint, seq)
            waiting.askers.append(envelope)
            waiting.alone |= (envelope.tenant, envelope.request) in self._suspects
            return []
        if seq < lane.expected:
            raise SequenceConflict(
                f"seq {seq} of this lane was settled long ago and its answer is no longer kept; "
                "it does not run again"
            )
        alone = (envelope.tenant, envelope.request) in self._suspects
        lane.early[seq] = Queued(operation, fingerprint, [envelope], alone=alone)
        self._advance(operation.lane, lane, now)
        return []

    def is_past(self, operation: Operation) -> bool:
        """Whether its number was used up, and how is not known here any more."""
        lane, seq = self._lanes[operation.lane], operation.seq
        waits = seq in lane.early or seq in lane.queued
        return seq < lane.expected and not waits and not self._outcomes.get(operation.lane, seq)

    def missing_before(self, operation: Operation) -> int | None:
        """The number of its lane that an operation waits for; None when it waits for none."""
        lane = self._lanes.get(operation.lane)
        return lane.expected if lane is not None and operation.seq in lane.early else None

    def take_moved(self) -> list[LaneId]:
        """The lanes in which what waited for a number may wait for it no more, since this was asked last."""
        moved, self._moved = [*self._moved], {}
        return moved

    def queued(self, adapter: AdapterId) -> int:
        """How many operations of an adapter wait or run, in order or not."""
        lanes = (self._lanes[name] for name in self._by_adapter.get(adapter, ()))
        return sum(len(lane.queued) + len(lane.early) for lane in lanes)

    def first(self, adapter: AdapterId) -> Operation | None:
        """What of an adapter runs next, or would if it had arrived in order; None when nothing waits."""
        if queue := self.queues.of(adapter):
            return queue[0].operation
        lanes = (self._lanes[name] for name in self._by_adapter.get(adapter, ()))
        return next((lane.early[min(lane.early)].operation for lane in lanes if lane.early), None)

    def finish(self, queued: Queued, outcome: Message) -> list[Answer]:
        """Settle the first operation of an adapter's queue: one outcome, for all who asked."""
        operation = queued.operation
        lane = self._lanes.get(operation.lane)
        if lane is not None:  # else it was closed while the operation ran
            self.queues.remove(queued)
            del lane.queued[operation.seq]
            if not isinstance(operation, SkipOperation):  # whose outcome is not that of what it stands for
                refusal = isinstance(operation, RefuseOperation)
                self._outcomes.put(
                    operation.lane, operation.seq, queued.fingerprint, outcome, refusal=refusal
                )
        return [Answer(asker, outcome) for asker in queued.askers]

    def expire(self, now: float) -> list[Answer]:
        """Give up on numbers that did not arrive in time, and fail what waited behind them."""
        late = [lane for lane, since in self._gap_since.items() if now - since >= self._gap_timeout_s]
        return [answer for lane in late for answer in self._give_up(lane)]

    def next_expiry(self) -> float | None:
        """When `expire` is worth calling next, on the clock of `now`; None while no lane has a gap."""
        return min(self._gap_since.values()) + self._gap_timeout_s if self._gap_since else None

    def close(self, adapter: AdapterId, outcome: Message) -> list[Answer]:
        """Forget an adapter's lanes and answer everything that waits in them."""
        self.queues.close(adapter)
        closed = [(name, self._lanes.pop(name)) for name in self._by_adapter.pop(adapter, [])]
        for name, _ in closed:
            self._gap_since.pop(name, None)
            self._moved[name] = None
        return [Answer(asker, outcome) for _, lane in closed for asker in _askers(lane)]

    def close_all(self, outcome: Message) -> list[Answer]:
        return [answer for adapter in list(self._by_adapter) for answer in self.close(adapter, outcome)]

    def _advance(self, name: LaneId, lane: _Lane, now: float) -> None:
        """Move what is now in order from the reorder buffer to the adapter's queue."""
        while (queued := lane.early.pop(lane.expected, None)) is not None:
            lane.queued[lane.expected] = queued
            self.queues.put(queued)
            lane.expected += 1
            self._moved[name] = None
        if not lane.early:
            self._gap_since.pop(name, None)
        else:
            # Whoever still sends is still there, and may send the missing number last, as the SDK does: it
            # gets the whole time from the latest arrival on.
            self._gap_since[name] = now

    def _give_up(self, name: LaneId) -> list[Answer]:
        lane = self._lanes[name]
        missing, end = lane.expected, max(lane.early) + 1
        outcome = failed(
            SequenceGap(
                f"operation {missing} of this lane did not arrive within {self._gap_timeout_s:g} s, so "
                f"what waited behind it did not run; go on with seq {end}"
            )
        )
        answers = []
        for seq in range(missing, end):
            queued = lane.early.pop(seq, None)
            self._outcomes.put(name, seq, queued.fingerprint if queued else None, outcome)
            answers += [Answer(asker, outcome) for asker in queued.askers] if queued else []
        lane.expected = end
        self._moved[name] = None
        del self._gap_since[name]
        return answers

    def _forget_idle(self, siblings: list[LaneId]) -> None:
        """Make room for one more: the longest unused go first."""
        idle = [name for name in siblings if not self._lanes[name].early and not self._lanes[name].queued]
        idle.sort(key=lambda name: self._lanes[name].used)
        for name in idle[: max(0, len(siblings) + 1 - self._lanes_per_adapter)]:
            siblings.remove(name)
            del self._lanes[name]

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses


def _check_same(known: bytes | None, fingerprint: bytes, seq: int) -> None:
    if known is not None and known != fingerprint:
        raise SequenceConflict(f"seq {seq} of this lane was used before with other content; use the next one")


def _askers(lane: _Lane) -> Iterator[Envelope]:
    for queued in (*lane.queued.values(), *lane.early.values()):
        yield from queued.askers
