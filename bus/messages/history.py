"""What the journal still holds of an adapter, read by its owner."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ids import AdapterId, LaneId
from .base import Message

OperationState = Literal["done", "failed", "waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One operation. number: of its request, order: of its end among all, 0 while it has none.

    step: of the adapter after it, where its outcome says so, else -1. details: its outcome in words.
    """

    number: int
    order: int
    operation: str
    lane: LaneId
    seq: int
    state: OperationState
    came_unix_s: float
    size_bytes: int
    step: int
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GetHistory(Message):
    """An adapter's operations in the order in which they ended, from the one behind `after` (an order, 0
    for the first) on. Answered with a page of them; AdapterNotFound where the journal has none of it."""

    kind: ClassVar[str] = "get_history"
    adapter: AdapterId
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Message):
    """entries: the next ones, none behind the last. from_creation: the journal has all of the adapter."""

    kind: ClassVar[str] = "history"
    entries: tuple[HistoryEntry, ...]
    from_creation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOperation(Message):
    """An operation of the journal as it came (with `last` False), but for the passes in which it ran, then its
    outcome."""

    kind: ClassVar[str] = "read_operation"
    adapter: AdapterId
    number: int
