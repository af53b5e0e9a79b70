"""An adapter's states on disk, of either kind: read as states, written from them.

Joins `checkpoints` and `snapshots`, which know files, with the engine, which knows what tensors mean.
Touches nothing but files, so any thread may do it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from torch import Tensor

from ..bus.errors import CheckpointMismatch
from ..bus.ids import AdapterId
from ..bus.messages import LoraSpec
from .adapter import Adapter, Saved
from .bank import PIECES, HostState, Piece
from .checkpoint_state import check_geometry
from .checkpoints import CheckpointRecord, Checkpoints
from .disk_quota import UNBOUND, Room
from .engine import TrainEngine
from .host_memory import host_piece
from .registry import AdapterRecord
from .snapshots import Draft, SnapshotRecord, Snapshots
from .windows import Window

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """A state at one moment. pieces: copies of those that changed since `before`, which holds the `unchanged`."""

    record: AdapterRecord
    window: Window
    step: int
    tokens: int
    pieces: Mapping[Piece, Tensor]
    unchanged: tuple[Piece, ...] = ()
    before: SnapshotRecord | None = None

    @property
    def lora(self) -> LoraSpec:
        return self.record.lora


class SavedStates:
    def __init__(self, engine: TrainEngine, checkpoints: Checkpoints, snapshots: Snapshots) -> None:
        self._engine = engine
        self._checkpoints = checkpoints
        self._snapshots = snapshots

    # --- reading ---------------------------------------------------------------------------------

    def newest(self, adapter: AdapterId) -> Saved | None:
        return next(iter(self._newest_first(adapter)), None)

    def read(self, saved: Saved, adapter: AdapterRecord) -> HostState:
        """Raises CheckpointMismatch: it is damaged, or of something else."""
        if isinstance(saved, SnapshotRecord):
            check_geometry(f"snapshot {saved.name}", (saved.lora, saved.base), (adapter.lora, adapter.base))
            tensors, metadata = self._snapshots.load(saved)
        else:
            ours = (adapter.lora, adapter.base)
            check_geometry(f"checkpoint {saved.name!r}", (saved.lora, saved.base), ours)
            tensors, metadata = self._checkpoints.load(saved)
        return self._engine.state_from_checkpoint(tensors, metadata, adapter.lora, with_optimizer=True)

    def newest_whole(self, adapter: AdapterRecord) -> tuple[Saved, HostState] | None:
        """The newest of both kinds that can be read, if there is one."""
        for saved in self._newest_first(adapter.adapter):
            try:
                return saved, self.read(saved, adapter)
            except CheckpointMismatch as error:
                log.warning("checkpoint.damaged_one_skipped", adapter=adapter.adapter, reason=error.message)
        return None

    def _newest_first(self, adapter: AdapterId) -> list[Saved]:
        found: list[Saved] = [*self._checkpoints.all(adapter), *self._snapshots.all(adapter)]
        return sorted(found, key=_number, reverse=True)

    # --- writing ---------------------------------------------------------------------------------

    def checkpoint(
        self,
        adapter: Adapter,
        name: str,
        state: HostState,
        request: str = "",
        room: Room = UNBOUND,
    ) -> CheckpointRecord:
        """As `Checkpoints.save`. Raises StorageFailed, DiskQuotaExceeded: there is none then."""
        tensors, metadata = self._engine.checkpoint_tensors(state)
        return self._checkpoints.save(
            adapter.id,
            name,
            tensors,
            metadata,
            step=state.step,
            lora=adapter.lora,
            base=adapter.record.base,
            request=request,
            room=room,
        )

    def capture(self, adapter: Adapter, state: HostState, window: Window) -> Capture:
        """Copy what changed of an adapter's state, wherever that lies; it counts as unchanged from here on.

        Raises OutOfSlots: the host has no memory left; nothing changed.
        """
        before = adapter.snapshot
        if before is not None and not self._snapshots.has(before):
            before = None
        held = before.pieces if before is not None else {}
        unchanged = tuple(piece for piece in state.pieces if piece in held and piece not in adapter.changed)
        changed = {piece: each for piece, each in state.pieces.items() if piece not in unchanged}
        capture = Capture(
            record=adapter.record,
            window=window,
            step=state.step,
            tokens=state.tokens,
            pieces={piece: _copy(each) for piece, each in changed.items()},
            unchanged=unchanged,
            before=before if unchanged else None,
        )
        adapter.changed = set()
        return capture

    def again(self, record: SnapshotRecord, adapter: Adapter, window: Window) -> Capture:
        """The state that lies on disk already, as the adapter's of today; without gradients once its window is
        closed."""
        pieces = [
            piece for piece in PIECES if piece in record.pieces and (window.open or piece != "gradients")
        ]
        return Capture(
            record=adapter.record,
            window=window,
            step=record.step,
            tokens=int(record.metadata["tokens"]) if window.open else 0,
            pieces={},
            unchanged=tuple(pieces),
            before=record,
        )

    def snapshot(self, capture: Capture) -> SnapshotRecord:
        """Raises StorageFailed: there is none then."""
        tensors, metadata = self._engine.snapshot_tensors(
            capture, capture.pieces, (*capture.pieces, *capture.unchanged)
        )
        return self._snapshots.write(
            Draft(
                adapter=capture.record.adapter,
                step=capture.step,
                lora=capture.lora,
                base=capture.record.base,
                window=capture.window,
                metadata=metadata,
                tensors=tensors,
                unchanged=capture.unchanged,
                before=capture.before,
            )
        )


def whole(adapter: AdapterRecord, state: HostState, window: Window) -> Capture:
    """A state that nobody changes any more."""
    return Capture(record=adapter, window=window, step=state.step, tokens=state.tokens, pieces=state.pieces)


def _number(saved: Saved) -> int:
    return saved.number if isinstance(saved, SnapshotRecord) else saved.sequence


def _copy(piece_N: Tensor) -> Tensor:
    return host_piece(piece_N.numel(), pinned=False).copy_(piece_N)
