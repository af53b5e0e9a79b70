"""One adapter as the trainer's loop knows it: its record, its window, and what of it is not on disk yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bus.ids import AdapterId, LaneId
from ..bus.messages import LoraSpec
from .bank import PIECES, Piece
from .checkpoints import CheckpointRecord
from .registry import AdapterRecord
from .snapshots import SnapshotRecord
from .windows import Event, Window

Saved = SnapshotRecord | CheckpointRecord

# Pieces of the state that an event changes. Of a failure, a score, a save, nothing does.
_CHANGES: Mapping[Event, frozenset[Piece]] = {
    Event.GATHERED: frozenset(("gradients",)),
    Event.COMMITTED: frozenset(PIECES),
    Event.REPLACED: frozenset(PIECES),
    Event.REPLACED_MIDWAY: frozenset(PIECES),
    Event.UNLOADED: frozenset(("gradients",)),
}


@dataclass(slots=True)
class Adapter:
    """checkpoint_step: step of the newest checkpoint, -1 when there is none.

    goes_on_from: its state while nothing of it is in memory; None is its seed. placed: the journal knows how it
    came to its state, so nothing older will do; else it began from the newest that was whole. snapshot: the
    last one written, from which everything but `changed` may be taken again. untold: one that a load left, of
    which the broker hears behind the load's reply. generation: of its state; another one comes with whatever
    puts another state in its place, and a copy from before that says nothing of the adapter any more.
    """

    record: AdapterRecord
    window: Window
    checkpoint_step: int
    goes_on_from: Saved | None = None
    placed: bool = False
    snapshot: SnapshotRecord | None = None
    changed: set[Piece] = field(default_factory=lambda: set(PIECES))
    untold: SnapshotRecord | None = None
    generation: int = 0

    @property
    def id(self) -> AdapterId:
        return self.record.adapter

    @property
    def lora(self) -> LoraSpec:
        return self.record.lora

    def happened(self, event: Event, *, step: int | None = None, lane: LaneId | None = None) -> None:
        self.window = self.window.after(event, step=step, lane=lane)
        self.changed |= _CHANGES.get(event, frozenset())

    def is_now(self, saved: Saved | None) -> None:
        """Its state is what lies on disk, and as far as anybody knows nothing else."""
        self.goes_on_from, self.placed, self.untold = saved, True, None
        self.generation += 1
        if isinstance(saved, SnapshotRecord):
            self.window = saved.window
            self.snapshot, self.changed = saved, set()
        else:
            self.window = Window(step=saved.step if saved is not None else 0)
            self.snapshot, self.changed = None, set(PIECES)

    def has(self, record: SnapshotRecord) -> None:
        """A snapshot of it is whole. What changed meanwhile is not in it."""
        if self.snapshot is None or self.snapshot.number < record.number:
            self.snapshot = self.goes_on_from = record  # the one before it may be removed

    def became(self, record: SnapshotRecord) -> None:
        """Its state was replaced by the one that this snapshot holds, of which nobody was told."""
        self.snapshot, self.changed, self.untold = record, set(), record
        self.generation += 1
