"""What the trainer runs next. Pure: looks at what may run, returns a turn as data.

Adapters take turns round-robin, one pass over the base model each, so a light adapter waits for at
most one pass of every other. What is cheap travels with the pass in front of it. A turn holds a
list of shares although it has one today: fusing several adapters into a pass changes this file
and the running of a turn, nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from ..bus.ids import AdapterId
from ..bus.messages import OptimStep
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
        behind = takewhile(lambda queued: is_light(queued.operation), islice(queue, 1, None))
        return Turn((Share(adapter, 1 + sum(1 for _ in behind)),))
    return None


def is_light(operation: Operation) -> bool:
    """Whether an operation costs little beside a pass. Nothing that touches a disk does."""
    return isinstance(operation, OptimStep)
