"""Between broker and trainer: how far an adapter's snapshots are, and how one is brought back to it.

The journal is the broker's, the states are the trainer's. A snapshot counts once the journal has it;
what an adapter did since then runs again after a restart (see `daemon/recovery`).
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ids import AdapterId, LaneId
from .base import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePosition:
    """next_seq: the lowest number of the lane whose operation a state does not hold."""

    lane: LaneId
    next_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverAdapter(Message):
    """Bring an adapter to where a snapshot left it, with its lanes open as they were then.

    Comes before anything else of the adapter after a trainer's start. snapshot: its name; "" is the
    adapter's beginning, from its seed. Answered with Recovered; with CheckpointMismatch where the snapshot
    is damaged or gone (the broker takes an older one), with AdapterNotFound where there is no such adapter,
    with AnotherBase where there is one that this trainer cannot serve.
    """

    kind: ClassVar[str] = "recover_adapter"
    adapter: AdapterId
    snapshot: str
    lanes: tuple[LanePosition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Message):
    kind: ClassVar[str] = "recovered"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipOperation(Message):
    """Use up a number of the lane for an operation that need not run again; answered with Done."""

    kind: ClassVar[str] = "skip_operation"
    adapter: AdapterId
    lane: LaneId
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadAgain(Message):
    """What an unload did to an adapter whose snapshot of then cannot be read: gradients go, and all lanes but these.

    Comes where the unload stood among what runs again, alone. Answered with Done.
    """

    kind: ClassVar[str] = "unload_again"
    adapter: AdapterId
    lanes: tuple[LanePosition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken(Message):
    """A trainer's report: a whole snapshot of an adapter lies on disk.

    snapshot: its name, never used again for this adapter. lanes: all of the adapter's that are open.
    digest: SHA-256 of its tensors' file, hex.
    """

    kind: ClassVar[str] = "snapshot_taken"
    actor: str
    adapter: AdapterId
    snapshot: str
    lanes: tuple[LanePosition, ...]
    step: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSnapshot(Message):
    """To the trainer: the journal has this snapshot. Those before the one before it may go."""

    kind: ClassVar[str] = "keep_snapshot"
    adapter: AdapterId
    snapshot: str
