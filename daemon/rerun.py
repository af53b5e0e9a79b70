"""What stands for an operation when it comes to a trainer again: itself, or what it did to its lane. Pure."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..bus.codec import decode, encode, peek
from ..bus.config import LimitsConfig
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
)
from .decisions import Frames, Key
from .journal.records import Logged, Past
from .replay import order_of

# What changes an adapter's state; everything else is done once its outcome is known.
_RUNS_AGAIN = frozenset(
    request.kind for request in (ForwardBackward, OptimStep, LoadCheckpoint, LoadVersion, ImportWeights)
)


@dataclass(slots=True)
class Replay:
    """How far an adapter is on its way back. asked: the RecoverAdapter under way. todo: to run again, with_trainer: is being run. last: follows when
    that is done, and is not waited for. parted: the trainer leaves, so nothing more comes of this one."""

    tries: int = 1
    parted: bool = False
    asked: Key | None = None
    snapshot: str = ""
    lanes: tuple[LanePosition, ...] = ()
    todo: deque[Logged] = field(default_factory=deque)
    with_trainer: dict[Key, Logged] = field(default_factory=dict)
    last: Sequence[Logged] = ()


class Rerun:
    """is_over: whether the trainer is done with an operation."""

    def __init__(self, past: Past, limits: LimitsConfig, is_over: Callable[[Logged], bool]) -> None:
        self._past = past
        self._limits = limits
        self.is_over = is_over

    def frames(self, logged: Logged) -> Frames:
        """What is sent."""
        if not self.is_over(logged) or self.runs(logged):
            return self._past.request(logged.number)
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

    def _failure(self, logged: Logged) -> Failed:
        failure = decode(self._past.outcome(logged.number), self._limits).body
        assert isinstance(failure, Failed)
        return failure


def replay_of(past: Past, adapter: AdapterId, rerun: Rerun) -> Replay | None:
    """What there is to do for an adapter; None where the journal has not seen its beginning, or its end."""
    snapshot = past.snapshot(adapter)
    if snapshot is None and not past.begins(adapter):
        return None
    lanes = tuple(past.lanes(adapter))
    order = order_of(past.after(adapter), lanes, is_over=rerun.is_over, code_of=rerun.code_of)
    name = snapshot.name if snapshot is not None else ""
    return Replay(snapshot=name, lanes=lanes, todo=deque(order.first), last=order.last)


def enveloped(key: Key, body: Message) -> Frames:
    tenant, request = key
    return encode(Envelope(request=request, tenant=tenant, body=body))
