"""Where the training state of each adapter lies, as it was told. Pure.

At least one thing holds an adapter's state:

    row   on the device, in a slot. While there is one it is the truth; only here does a state change
    copy  in host memory. Of an adapter in a slot it may be behind the row, which overwrites it then
    file  on disk, behind the host memory
    seed  an adapter that never changed is what its seed says, so it takes no memory at all

Which move is next is decided in `tiers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..bus.ids import AdapterId
from .budgets import Budgets, Reservations, Room, Sizes
from .moves import Draw, DropCopy, DropFile, Load, Move, Read, Spill, Vacate, WriteBack

Place = Literal["device", "host", "disk"]


@dataclass(slots=True)
class Held:
    """size: bytes of the whole state as it is now. seed: it never changed. copy, file: bytes that they
    take, 0 for none. behind: the row changed since the copy was whole. reserved: its whole state is
    set aside, because it changed or may. needed: when it was last needed, as a count."""

    sizes: Sizes
    size: int
    seed: bool = True
    slot: int | None = None
    copy: int = 0
    behind: bool = False
    file: int = 0
    file_is_old: bool = False
    reserved: bool = False
    needed: int = 0
    pins: int = 0

    @property
    def has_copy(self) -> bool:
        return self.copy > 0 and not self.behind

    @property
    def has_file(self) -> bool:
        return self.file > 0 and not self.file_is_old

    @property
    def backed(self) -> bool:
        """Whether the row may go."""
        return self.has_copy or self.has_file or self.seed


class Holdings:
    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self._held: dict[AdapterId, Held] = {}
        self._slots: list[AdapterId | None] = [None] * budgets.slots
        self._row_bytes: dict[AdapterId, int] = {}
        self._copies: dict[AdapterId, None] = {}  # least recently needed first
        self._files: set[AdapterId] = set()
        self._soon: dict[AdapterId, int] = {}
        self._reservations = Reservations(budgets)
        self._needs = 0
        self.device_bytes = 0
        self.host_bytes = 0
        self.disk_bytes = 0

    # --- what is where -------------------------------------------------------------------------

    def admitted(self, adapter: AdapterId) -> bool:
        return adapter in self._held

    def slot_of(self, adapter: AdapterId) -> int | None:
        held = self._held.get(adapter)
        return None if held is None else held.slot

    def occupied(self) -> list[tuple[int, AdapterId]]:
        return [(slot, adapter) for slot, adapter in enumerate(self._slots) if adapter is not None]

    def place_of(self, adapter: AdapterId) -> Place:
        held = self._held.get(adapter)
        if held is not None and held.slot is not None:
            return "device"
        return "host" if held is not None and held.copy else "disk"

    def room(self) -> Room:
        resident = frozenset(self._on_device())
        return Room(
            slots=self.budgets.slots,
            device_bytes=self.budgets.device_bytes,
            on_device=resident,
            pinned=frozenset(adapter for adapter in resident if self._held[adapter].pins),
            row_bytes_of=self._row_bytes,
        )

    def _on_device(self) -> list[AdapterId]:
        return [adapter for adapter in self._slots if adapter is not None]

    # --- coming, going, staying -------------------------------------------------------------------

    def admit(self, adapter: AdapterId, sizes: Sizes) -> None:
        """Take in an adapter that is what its seed says, until a state is `adopted`.

        Raises:
            OutOfSlots: it could never be placed, or the budgets are used up. Nothing changed.
        """
        assert not self.admitted(adapter)
        idle = [self._held[each] for each in self._on_device() if self._held[each].seed]
        self._reservations.admit(sizes, given_up=sum(held.sizes.state for held in idle if not held.pins))
        self._held[adapter] = Held(sizes, size=sizes.fresh)
        self._row_bytes[adapter] = sizes.row

    def adopted(self, adapter: AdapterId, size: int) -> int | None:
        """A state came from elsewhere as a copy in host memory, in place of whatever there was.

        Returns the slot that the adapter leaves, if it had one.
        """
        held = self._held[adapter]
        assert not held.pins, "what is pinned cannot be replaced"
        self._reserve(held)
        held.seed, held.size, held.file_is_old = False, size, True
        slot = self._empty_slot(held)
        self._resize_copy(adapter, held, size)
        return slot

    def remove(self, adapter: AdapterId) -> int | None:
        """Forget an adapter wherever it lies. Returns the slot that it leaves, if it had one."""
        held = self._held[adapter]
        slot = self._empty_slot(held)
        self._resize_copy(adapter, held, 0)
        self._resize_file(adapter, held, 0)
        self._give_back(held)
        self._reservations.leave(held.sizes)
        self._soon.pop(adapter, None)
        del self._held[adapter], self._row_bytes[adapter]
        return slot

    def pin(self, adapter: AdapterId) -> None:
        """Keep an adapter in its slot until as many `unpin` follow."""
        held = self._held[adapter]
        assert held.slot is not None, "only what lies in a slot can be pinned"
        held.pins += 1

    def unpin(self, adapter: AdapterId) -> None:
        held = self._held[adapter]
        assert held.pins, "it is not pinned"
        held.pins -= 1

    def needed(self, adapters: Sequence[AdapterId], soon: Sequence[AdapterId] = ()) -> None:
        """These are needed now, and `soon` next, in that order."""
        self._needs += 1
        for adapter in adapters:
            self._held[adapter].needed = self._needs
            if adapter in self._copies:
                self._copies[adapter] = self._copies.pop(adapter)
        self._soon = {adapter: place for place, adapter in reversed(list(enumerate(soon)))}

    def changed(self, adapter: AdapterId, size: int) -> None:
        """The row differs from what was kept of it; the whole state takes `size` bytes now."""
        held = self._held[adapter]
        assert held.slot is not None
        assert size <= held.sizes.state, f"{size} bytes were never reserved"
        held.size, held.seed, held.behind, held.file_is_old = size, False, True, True

    # --- what was done ----------------------------------------------------------------------------

    def performed(self, move: Move) -> None:
        held = self._held[move.adapter]
        match move:
            case DropCopy():
                self._resize_copy(move.adapter, held, 0)
            case DropFile():
                self._resize_file(move.adapter, held, 0)
            case Spill(size=size):
                self._resize_file(move.adapter, held, size)
            case Read(size=size) | Draw(size=size):
                self._resize_copy(move.adapter, held, size)
                held.size = size
            case WriteBack():
                self._resize_copy(move.adapter, held, held.size)
            case Vacate():
                self._empty_slot(held)
            case Load(slot=slot):
                self._occupy(move.adapter, held, slot)

    def _occupy(self, adapter: AdapterId, held: Held, slot: int) -> None:
        assert self._slots[slot] is None, f"slot {slot} is in use"
        assert held.slot is None, f"{adapter} lies in another slot"
        assert held.has_copy
        self._reserve(held)
        held.slot = slot
        self._slots[slot] = adapter
        self.device_bytes += held.sizes.row

    def _empty_slot(self, held: Held) -> int | None:
        if (slot := held.slot) is None:
            return None
        assert not held.pins, f"slot {held.slot} is pinned"
        self._slots[slot] = None
        self.device_bytes -= held.sizes.row
        held.slot = None
        if held.seed:
            self._give_back(held)  # it cannot change now, and what it is takes nothing
        return slot

    def _reserve(self, held: Held) -> None:
        if not held.reserved:
            self._reservations.take(held.sizes)
            held.reserved = True

    def _give_back(self, held: Held) -> None:
        if held.reserved:
            self._reservations.give_back(held.sizes)
            held.reserved = False

    def _resize_copy(self, adapter: AdapterId, held: Held, size: int) -> None:
        self.host_bytes += size - held.copy
        held.copy, held.behind = size, False
        if size:
            self._copies.setdefault(adapter)
        else:
            self._copies.pop(adapter, None)

    def _resize_file(self, adapter: AdapterId, held: Held, size: int) -> None:
        self.disk_bytes += size - held.file
        held.file, held.file_is_old = size, False
        (self._files.add if size else self._files.discard)(adapter)
