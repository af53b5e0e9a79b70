"""What stands for an operation when it comes to a trainer again: itself, or what it did to its lane. Pure."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..bus.codec import decode, encode, peek
from ..bus.config import LimitsConfig
from ..bus.errors import StorageFailed
from ..bus.ids import AdapterId
from ..bus.messages import (
    Envelope,
    Failed,
    ForwardBackward,
    ImportWeights,
    LanePosition,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    RefuseOperation,
    SkipOperation,
    UnloadAdapter,
    UnloadAgain,
)
from .compositions import as_it_ran
from .decisions import Frames, Key
from .journal.records import Logged, Past
from .ledger import Ticket
from .replay import order_of

# What changes an adapter's state; everything else is done once its outcome is known.
_RUNS_AGAIN = frozenset(
    request.kind
    for request in (ForwardBackward, OptimStep, LoadCheckpoint, LoadVersion, ImportWeights, UnloadAdapter)
)
# Operations of one adapter that are with the trainer at one time while it runs them again.
_AT_A_TIME = 64


@dataclass(slots=True)
class Replay:
    """How far an adapter is on its way back. asked: the RecoverAdapter under way. todo: to run again,
    with_trainer: is being run. last: follows when that is done, and is not waited for. parted: the trainer
    leaves, so nothing more comes of this one."""

    tries: int = 1
    parted: bool = False
    asked: Key | None = None
    snapshot: str = ""
    lanes: tuple[LanePosition, ...] = ()
    todo: deque[Logged] = field(default_factory=deque)
    with_trainer: dict[Key, Logged] = field(default_factory=dict)
    last: Sequence[Logged] = ()

    @property
    def may_go_on(self) -> bool:
        """Whether the next of it may go to the trainer now. An unload is there alone."""
        if not self.todo or len(self.with_trainer) >= _AT_A_TIME:
            return False
        return not (self.with_trainer and _unloads((self.todo[0], *self.with_trainer.values())))

    @property
    def takes_snapshot(self) -> bool:
        """Not one from a try before this, in which something failed that had not: the trainer's lane is past it.
        Nor one from before an unload that is to come, which ends lanes."""
        whole = self.asked is None and not self.parted
        return whole and not _unloads((*self.todo, *self.with_trainer.values()))


class Rerun:
    """find: the ticket of a request under way."""

    def __init__(self, past: Past, limits: LimitsConfig, find: Callable[[Key], Ticket | None]) -> None:
        self._past = past
        self._limits = limits
        self._find = find

    def is_over(self, logged: Logged) -> bool:
        """Whether the trainer is done with it, also where the journal has no outcome yet. All others come by
        themselves, from where they wait."""
        ticket = self._find(logged.key) if logged.order is None else None
        return ticket is None or ticket.written_version

    def is_unwritten(self, logged: Logged) -> bool:
        """Whether it has an outcome that the journal is to have and does not: its first, or that of another try."""
        ticket = self._find(logged.key) if logged.order is None or logged.again else None
        return ticket is not None and ticket.outcome is not None and (ticket.kept or ticket.seen)

    def frames(self, logged: Logged) -> Frames:
        """What is sent."""
        if logged.kind == UnloadAdapter.kind:
            return enveloped(logged.key, self._unload_again(logged))
        if not self.is_over(logged) or self.runs(logged):
            noted = self._past.outcome(logged.number) if logged.order is not None else None
            return as_it_ran(self._past.request(logged.number), noted, self._limits)
        if logged.failed:
            failure = self._failure(logged)
            refused = RefuseOperation(
                adapter=logged.adapter,
                lane=logged.lane,
                seq=logged.seq,
                code=failure.code,
                message=failure.message,
            )
            return enveloped(logged.key, refused)
        skipped = SkipOperation(adapter=logged.adapter, lane=logged.lane, seq=logged.seq)
        return enveloped(logged.key, skipped)

    def runs(self, logged: Logged) -> bool:
        """Whether it has an outcome and runs all the same."""
        if logged.failed or logged.kind not in _RUNS_AGAIN or not self.is_over(logged):
            return False
        if logged.kind != ForwardBackward.kind:
            return True
        header = peek(self._past.request(logged.number)[0], self._limits)
        return header.fields.get("forward_only") is not True

    def code_of(self, logged: Logged) -> str:
        """Of its failure."""
        return self._failure(logged).code

    def same(self, logged: Logged, frames: Frames) -> bool:
        """Whether it was answered as the first time."""
        return [bytes(frame) for frame in frames] == [*map(bytes, self._past.outcome(logged.number))]

    def _unload_again(self, unload: Logged) -> UnloadAgain:
        """What was opened later did nothing yet."""
        assert unload.order is not None
        opened = self._past.opened(unload.adapter)
        later = [LanePosition(lane=lane, next_seq=1) for lane, order in opened if order > unload.order]
        return UnloadAgain(adapter=unload.adapter, lanes=tuple(later))

    def _failure(self, logged: Logged) -> Failed:
        failure = decode(self._past.outcome(logged.number), self._limits).body
        assert isinstance(failure, Failed)
        return failure


def replay_of(past: Past, adapter: AdapterId, rerun: Rerun) -> Replay | None:
    """What there is to do for an adapter; None where the journal has not seen its beginning, or its end.

    Raises StorageFailed: the journal could not take yet how something that it did ended.
    """
    snapshot = past.snapshot(adapter)
    if snapshot is None and not past.begins(adapter):
        return None
    lanes, logged = tuple(past.lanes(adapter)), past.after(adapter)
    if any(map(rerun.is_unwritten, logged)):
        raise StorageFailed("the journal could not take yet how an operation of the adapter ended")
    order = order_of(logged, lanes, is_over=rerun.is_over, code_of=rerun.code_of)
    name = snapshot.name if snapshot is not None else ""
    return Replay(snapshot=name, lanes=lanes, todo=deque(order.first), last=order.last)


def _unloads(logged: Iterable[Logged]) -> bool:
    return any(each.kind == UnloadAdapter.kind for each in logged)


def enveloped(key: Key, body: Message) -> Frames:
    tenant, request = key
    return encode(Envelope(request=request, tenant=tenant, body=body))
