"""What the trainer runs next. Pure: looks at what may run, returns a turn as data.

Adapters take turns round-robin, one pass over the base model each, so a light adapter waits for at
most one pass of every other. What is cheap travels with the pass in front of it. A turn holds a
list of shares although it has one today: fusing several adapters into a pass changes this file
and the running of a turn, nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..bus.ids import AdapterId
from ..bus.messages import OptimStep, RefuseOperation
from .lanes import Operation, Queued


@dataclass(frozen=True, slots=True)
class Share:
    """What an adapter gets of a turn: the first `count` operations of its queue."""

    adapter: AdapterId
    count: int


@dataclass(frozen=True, slots=True)
class Turn:
    """shares: one per adapter, never empty."""

    shares: tuple[Share, ...]


def next_turn(runnable: Mapping[AdapterId, Sequence[Queued]]) -> Turn | None:
    """Choose from what may run, adapters in the order of their turns; None if nothing may."""
    for adapter, queue in runnable.items():
        return Turn((Share(adapter, next(turn_sizes(queue))),))
    return None


def turn_sizes(queue: Iterable[Queued]) -> Iterator[int]:
    """How many operations of an adapter's queue each of its turns will take, if nothing else comes."""
    count = 0
    for queued in queue:
        if count and not is_light(queued.operation):
            yield count
            count = 0
        count += 1
    if count:
        yield count


def is_light(operation: Operation) -> bool:
    """Whether an operation costs little beside a pass. Nothing that touches a disk does."""
    return isinstance(operation, OptimStep | RefuseOperation)
