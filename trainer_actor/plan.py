"""What a turn of the trainer holds, and which adapters share its pass over the base model. Pure.

A turn has three parts, in this order: light operations of adapters on the device, as one batch;
then one pass of pieces of forward_backwards, or else one single operation, such as a save. A piece
is at most a pass, so nobody waits behind anybody's long batch for more than one pass.

Whose turn it is leads: the turn is of its kind, and it is always part of it. Others join its pass
within the pass's positions and the device's room. First those whose turn it is as well, if they lie on
the device, or if no one has to leave it who waits too, or if bringing that one back costs less than the
pass that is saved (`Costs`). Then others that lie on the device, who ride along on what is left.

What runs again in a pass that is noted (`compositions`) does so with those who were in it, and nobody else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..bus.ids import AdapterId
from ..bus.messages import ForwardBackward, OptimStep, RefuseOperation, SkipOperation
from .budgets import Room
from .compositions import PassShape
from .costs import Costs
from .queues import Operation, Queued

# Light operations of one adapter in one turn.
_STEPS = 16


@dataclass(frozen=True, slots=True)
class Share:
    """The first `count` operations of an adapter's queue, after those that run earlier in the turn."""

    adapter: AdapterId
    count: int


@dataclass(frozen=True, slots=True)
class Turn:
    """steps: light operations of adapters that lie on the device. late_steps: of those that are brought
    there for the rest of the turn. members: forward_backwards of which the next piece runs in the pass;
    of several of one adapter, all are at their last piece. single: an adapter whose next operation is
    neither light nor a pass. tokens: positions of the pass. alone: it holds one operation that may be what
    ended an earlier trainer, so that nothing else may be under way."""

    steps: tuple[Share, ...] = ()
    late_steps: tuple[Share, ...] = ()
    members: tuple[Share, ...] = ()
    single: AdapterId | None = None
    tokens: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter with work: `steps` light operations, behind them `heavy`, the first that is not light.

    pieces: positions of what may run of it in one pass. begins_long: its first piece is not its last,
    and none has run yet. alone: the one operation it stands for runs with no other. shape: of the pass in
    which they run again, if they do.
    """

    adapter: AdapterId
    steps: int
    heavy: Operation | None
    pieces: tuple[int, ...]
    begins_long: bool
    alone: bool = False
    shape: PassShape | None = None


def candidate(adapter: AdapterId, queue: Iterable[Queued], most: int) -> Candidate:
    """What of an adapter's queue could run in one turn: `most` positions, or one piece that has more."""
    steps, heavy = 0, None
    pieces: list[int] = []
    tokens = 0
    alone = False
    for queued in queue:
        if alone or (queued.alone and (steps or heavy)):
            break
        alone = queued.alone
        if heavy is None and is_light(queued.operation):
            if steps == _STEPS:
                break
            steps += 1
            continue
        heavy = heavy or queued
        left = queued.left
        if not isinstance(queued.operation, ForwardBackward) or (pieces and len(left) > 1):
            break
        if queued.shape != heavy.shape:
            break
        pieces.append(left[0])
        tokens += left[0]
        if len(left) > 1 or tokens >= most:  # what is behind a longer one waits until its last piece has run
            break
    long = heavy is not None and len(heavy.pieces) > 1 and not heavy.ran
    shape = heavy.shape if heavy is not None else None
    return Candidate(adapter, steps, heavy.operation if heavy else None, tuple(pieces), long, alone, shape)


def is_light(operation: Operation) -> bool:
    """Whether an operation costs little beside a pass. Nothing that touches a disk does."""
    return isinstance(operation, OptimStep | RefuseOperation | SkipOperation)


@dataclass(slots=True)
class Plan:
    """Builds one turn. begun: adapters with an operation some of whose pieces have run; they are pinned.
    disk_is_free: an operation that is neither light nor a pass may run."""

    device: Room
    costs: Costs
    pass_tokens: int
    fuse: bool
    begun: frozenset[AdapterId]
    disk_is_free: bool = True
    _members: dict[AdapterId, int] = field(default_factory=dict)
    _late: list[Share] = field(default_factory=list)
    _long: set[AdapterId] = field(default_factory=set)
    _tokens: int = 0
    _shape: PassShape | None = None

    def turn(
        self,
        leader: Candidate,
        lying: Sequence[Candidate] = (),
        eligible: Iterable[Candidate] = (),
        riders: Iterable[Candidate] = (),
    ) -> Turn:
        """leader: whose turn it is, and who is `placeable`. lying: all others on the device that have work.
        eligible: others whose turn it is as well. riders: of those on the device, others that may share
        the pass. All in order."""
        on_device = [leader, *lying] if leader.adapter in self.device.on_device else lying
        steps = tuple(Share(each.adapter, each.steps) for each in on_device if each.steps)
        if not leader.pieces:
            self._brought(leader)
            single = leader.adapter if leader.heavy is not None and self.disk_is_free else None
            return Turn(steps, tuple(self._late), (), single)
        self._shape = leader.shape
        self._join(leader)
        if self.fuse:
            self._fill(lying, eligible, riders)
        members = tuple(Share(adapter, count) for adapter, count in self._members.items())
        return Turn(steps, tuple(self._late), members, None, self._tokens)

    def placeable(self, each: Candidate) -> bool:
        """Whether it can run now: pinned adapters stay, and not all slots may be theirs."""
        if not (each.steps or each.pieces or self.disk_is_free):
            return False
        if each.adapter in self.begun:
            return True
        pinned = [other for other in self.begun if other not in self._members]
        together = [*pinned, *self._members, each.adapter]
        if len(together) > self.device.slots:
            return False
        taken = sum(map(self.device.row_bytes, together))
        if taken > self.device.device_bytes:
            return False
        long = len(self.begun | self._long)
        if not (each.begins_long and long):
            return True
        # What begins now is pinned for several passes: leave room to those who are short.
        return long + 2 <= self.device.slots and 2 * taken <= self.device.device_bytes

    def _fill(
        self, lying: Sequence[Candidate], eligible: Iterable[Candidate], riders: Iterable[Candidate]
    ) -> None:
        waiting = {each.adapter for each in lying}
        for each in eligible:
            if self._tokens >= self.pass_tokens or len(self._members) >= self.device.slots:
                return
            if each.adapter in waiting or self._worth_a_swap(each, waiting):
                self._try(each)
        for each in riders:
            if self._tokens >= self.pass_tokens:
                return
            self._try(each)

    def _try(self, each: Candidate) -> None:
        fits = each.pieces and self._tokens + each.pieces[0] <= self.pass_tokens
        if each.shape == self._shape and fits and each.adapter not in self._members and self.placeable(each):
            self._join(each)

    def _join(self, each: Candidate) -> None:
        """Take as many of its pieces as fit, its first in any case."""
        count = 0
        for tokens in each.pieces if self.fuse else each.pieces[:1]:
            if count and self._tokens + tokens > self.pass_tokens:
                break
            self._tokens += tokens
            count += 1
        self._members[each.adapter] = count
        if each.begins_long:
            self._long.add(each.adapter)
        self._brought(each)

    def _brought(self, each: Candidate) -> None:
        if each.steps and each.adapter not in self.device.on_device:
            self._late.append(Share(each.adapter, each.steps))

    def _worth_a_swap(self, each: Candidate, waiting: set[AdapterId]) -> bool:
        """Nobody who waits has to leave for it; or it costs less than the pass that is saved, when one of
        about its size leaves and comes back."""
        staying = [other for other in self.device.on_device if other in waiting]
        newcomers = [other for other in self._members if other not in waiting]
        together = [*staying, *newcomers, each.adapter]
        row_bytes = self.device.row_bytes
        if len(together) <= self.device.slots and sum(map(row_bytes, together)) <= self.device.device_bytes:
            return True
        return 2 * self.costs.copy_of(row_bytes(each.adapter)) < self.costs.pass_ms
