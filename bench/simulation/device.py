"""Where training states lie: the trainer's own decisions about it, with moves that cost time, not bytes.

Takes the place of the trainer's `resident`: it performs what `tiers` decides, one move at a time.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from loractl.bus.config import Config
from loractl.bus.errors import OutOfSlots
from loractl.bus.ids import AdapterId
from loractl.trainer_actor.budgets import Budgets, Room, Sizes
from loractl.trainer_actor.moves import (
    Draw,
    DropCopy,
    DropFile,
    Load,
    Move,
    Read,
    Spill,
    Vacate,
    WriteBack,
)
from loractl.trainer_actor.tiers import Tiers

from .costs import Machine
from .record import Record
from .tenants import Tenant
from .world import World

# A state is pieces of one number of 4 bytes for each LoRA parameter.
_PIECE_BYTES = 4
_AFTER_STEP = {"main", "exp_avg", "exp_avg_sq"}


@dataclass(slots=True)
class _State:
    """holds: pieces that are not all zero. changed: those that differ from the copy in host memory.
    ready_at: when the copy to the device is done."""

    parameters: int
    holds: set[str] = field(default_factory=lambda: {"main"})
    changed: set[str] = field(default_factory=set)
    copied: bool = False
    ready_at: float = 0.0

    def bytes_of(self, pieces: Iterable[str]) -> int:
        return _PIECE_BYTES * self.parameters * len(set(pieces))


class VirtualDevice:
    def __init__(self, config: Config, machine: Machine, world: World, record: Record) -> None:
        trainer = config.trainer
        self._machine = machine
        self._world = world
        self._record = record
        self._states: dict[AdapterId, _State] = {}
        self._in_use: frozenset[AdapterId] = frozenset()
        self._copies_end = 0.0  # when the copy stream has nothing left to do
        self._tiers = Tiers(
            Budgets(
                slots=trainer.slots,
                device_bytes=trainer.device_bytes,
                host_bytes=trainer.host_bytes,
                disk_bytes=trainer.disk_bytes,
            )
        )

    def admit(self, tenant: Tenant) -> None:
        parameters = self._machine.rank_parameters * tenant.rank
        sizes = Sizes(
            row=self._machine.row_bytes(tenant.rank),
            state=self._machine.state_bytes(tenant.rank),
            fresh=_PIECE_BYTES * parameters,
        )
        self._tiers.admit(tenant.adapter, sizes)
        self._states[tenant.adapter] = _State(parameters)

    def room(self) -> Room:
        """What the schedule sees of it."""
        return self._tiers.room()

    # --- what the trainer's loop does --------------------------------------------------------

    def place_all(self, adapters: Sequence[AdapterId], soon: Sequence[AdapterId] = ()) -> None:
        """Bring these to the device; the time that is waited for it passes."""
        self._tiers.needed(adapters, soon)
        self._tiers.check_together(adapters)
        self._in_use = frozenset(adapters)
        for adapter in adapters:
            self._bring(adapter, beside=self._in_use)
        self._wait_until(max((self._states[each].ready_at for each in adapters), default=0.0))

    def prefetch(self, adapters: Sequence[AdapterId]) -> None:
        """Bring these in behind the pass, nearest first, as far as they fit beside it."""
        self._tiers.needed((), soon=adapters)
        beside = set(self._in_use)
        for adapter in adapters:
            beside.add(adapter)
            try:
                self._bring(adapter, beside=beside)
            except OutOfSlots:
                return

    def on_device(self, adapter: AdapterId) -> bool:
        return self._tiers.slot_of(adapter) is not None

    def pin(self, adapter: AdapterId) -> None:
        self._tiers.pin(adapter)

    def unpin(self, adapter: AdapterId) -> None:
        self._tiers.unpin(adapter)

    def gathered(self, adapter: AdapterId) -> None:
        """A forward_backward added to its gradients."""
        state = self._states[adapter]
        state.holds.add("gradients")
        self._changed(adapter, {"gradients"})

    def stepped(self, adapter: AdapterId) -> None:
        """An optim_step changed all but its gradients, which are zero now."""
        state = self._states[adapter]
        state.holds = set(_AFTER_STEP)
        state.changed.discard("gradients")
        self._changed(adapter, _AFTER_STEP)

    def _changed(self, adapter: AdapterId, pieces: set[str]) -> None:
        state = self._states[adapter]
        state.changed |= pieces
        self._tiers.changed(adapter, state.bytes_of(state.holds))

    def _bring(self, adapter: AdapterId, beside: Collection[AdapterId]) -> None:
        while (move := self._decided(adapter, beside)) is not None:
            self._states[adapter].ready_at = self._spend(self._perform(move))

    def _decided(self, adapter: AdapterId, beside: Collection[AdapterId]) -> Move | None:
        with self._record.deciding.measured():
            return self._tiers.step_to_device(adapter, beside=beside)

    def _perform(self, move: Move) -> float:
        """What a move takes, in milliseconds."""
        state, took_ms = self._states[move.adapter], 0.0
        match move:
            case Load():
                took_ms = self._copy(state.bytes_of(state.holds))
                self._record.swaps += 1
                state.changed.clear()
            case WriteBack():
                took_ms = self._copy(state.bytes_of(state.changed if state.copied else state.holds))
                state.copied, state.changed = True, set()
            case DropCopy():
                state.copied = False
            case Draw(size=size):
                took_ms = self._copy(size)
                state.copied = True
            case Read(size=size):
                took_ms = self._disk(size)
                state.copied = True
            case Spill(size=size):
                took_ms = self._disk(size)
            case Vacate() | DropFile():
                pass
        self._tiers.performed(move)
        return took_ms

    def _copy(self, size: int) -> float:
        self._record.copied_bytes += size
        return size / self._machine.copy_bytes_per_ms

    def _disk(self, size: int) -> float:
        self._record.disk_bytes += size
        return size / self._machine.disk_bytes_per_ms

    def _spend(self, took_ms: float) -> float:
        """A move begins when the one before it is done. Returns when it ends, in seconds."""
        self._copies_end = max(self._copies_end, self._world.now) + took_ms / 1e3
        if not self._machine.overlap:
            self._wait_until(self._copies_end)
        return self._copies_end

    def _wait_until(self, at: float) -> None:
        waited_s = max(0.0, at - self._world.now)
        self._record.waited_for_copies(waited_s)
        self._world.spend(1e3 * waited_s)
