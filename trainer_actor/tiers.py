"""Which move of a training state is next: who leaves the device, the host memory, the disk. Pure.

`step_to_device` and its like answer with one move at a time, for the truth as it is then: whoever
performs it says so with `performed`, and asks for the next. So a move that fails leaves nothing to
be undone here, and no budget is exceeded between two moves. The least recently needed makes room
for others, but what the next turns need (`soon`) comes last.

What lies where is known to `holdings`; what is set aside for whom, so that room can always be made, is told
in `budgets`.
"""

from collections.abc import Collection
from itertools import islice

from ..bus.errors import OutOfSlots
from ..bus.ids import AdapterId
from .holdings import Held, Holdings
from .moves import Draw, DropCopy, DropFile, Load, Move, Read, Spill, Vacate, WriteBack

# Copies that are looked at, least recently needed first, so that a decision takes as long with thousands
# as with a hundred.
_LOOKED_AT = 64


class Tiers(Holdings):
    def check_together(self, adapters: Collection[AdapterId]) -> None:
        """Raises OutOfSlots: they cannot lie on the device at one time, beside what is pinned there."""
        if not self.room().fits(adapters):
            size = sum(self._row_bytes[adapter] for adapter in adapters)
            pinned = len(self.room().pinned.difference(adapters))
            raise OutOfSlots(
                f"{len(adapters)} adapters of {size} bytes cannot lie on the device together: it has "
                f"{self.budgets.slots} slots and {self.budgets.device_bytes} bytes, and {pinned} other adapters "
                "are held there by operations under way; raise trainer.slots or trainer.device_bytes"
            )

    def step_to_device(self, adapter: AdapterId, *, beside: Collection[AdapterId] = ()) -> Move | None:
        """Into a slot, without taking theirs from `beside`; None once it is there.

        Raises:
            OutOfSlots: what would have to leave may not, or the budgets are used up.
        """
        held = self._held[adapter]
        if held.slot is not None:
            return None
        if (move := self._step_to_reserve(held, beside)) is not None:
            return move
        free = self.budgets.device_bytes - self.device_bytes
        if None not in self._slots or free < held.sizes.row:
            movable = self._movable(beside)
            if not movable:
                raise OutOfSlots(
                    f"an adapter of {held.sizes.row} bytes finds no place on the device: what lies in its "
                    f"{self.budgets.slots} slots and {self.budgets.device_bytes} bytes is needed there now"
                )
            return self._leave(min(movable, key=self._turn))
        return self.step_to_host(adapter) or Load(adapter, self._slots.index(None))

    def step_to_host(self, adapter: AdapterId) -> Move | None:
        """Have a whole copy in host memory, wherever else it lies; None once it is there."""
        held = self._held[adapter]
        if held.has_copy:
            return None
        if held.slot is not None:
            return self._step_to_room(held.size - held.copy, adapter) or WriteBack(adapter)
        if held.has_file:
            return self._step_to_room(held.file, adapter) or Read(adapter, held.file)
        assert held.seed, "the state is nowhere"
        return self._step_to_room(held.sizes.fresh, adapter) or Draw(adapter, held.sizes.fresh)

    def step_to_disk(self, adapter: AdapterId) -> Move | None:
        """Out of the slot and of host memory; None once it is, while it is pinned, or when the disk is full."""
        held = self._held[adapter]
        if held.slot is not None:
            return None if held.pins else self._leave(adapter)
        return self._drop(adapter) if held.copy else None

    def step_to_adopt(self, adapter: AdapterId, size: int) -> Move | None:
        """Room in host memory for a state of `size` bytes that will be `adopted`; None once it is there.

        Raises:
            OutOfSlots: the budgets are used up.
        """
        held = self._held[adapter]
        return self._step_to_reserve(held, {adapter}) or self._step_to_room(size - held.copy, adapter)

    def _step_to_room(self, size: int, but: AdapterId) -> Move | None:
        """Free `size` bytes of host memory without touching the copy of `but`; None once they are free."""
        if self.host_bytes + size <= self.budgets.host_bytes:
            return None
        lying = [each for each in self._on_device() if each in self._copies and each != but]
        # Copies of what is on the device cost a write-back later and no more: they go first.
        others = lying or [each for each in islice(self._copies, _LOOKED_AT + 1) if each != but]
        assert others, f"{size} bytes were never reserved"
        move = self._drop(min(others, key=self._cost))
        assert move is not None, "bytes of the disk were never reserved"
        return move

    def _step_to_reserve(self, held: Held, beside: Collection[AdapterId]) -> Move | None:
        """Room in the budgets for all that a state may become; None once there is.

        What lies on the device as its seed says may have had some set aside, and never used it.
        """
        if held.reserved:
            return None
        try:
            self._reservations.check(held.sizes)
        except OutOfSlots:
            unchanged = [adapter for adapter in self._movable(beside) if self._held[adapter].seed]
            if not unchanged:
                raise
            return self._leave(min(unchanged, key=self._turn))
        return None

    def _movable(self, beside: Collection[AdapterId]) -> list[AdapterId]:
        resident = self._on_device()
        return [adapter for adapter in resident if adapter not in beside and not self._held[adapter].pins]

    def _leave(self, adapter: AdapterId) -> Move:
        held = self._held[adapter]
        assert held.slot is not None
        if held.backed:
            return Vacate(adapter, held.slot)
        move = self.step_to_host(adapter)
        assert move is not None
        return move

    def _drop(self, adapter: AdapterId) -> Move | None:
        """Bring a copy out of host memory, over the disk if nothing else holds the state; None if that is full."""
        held = self._held[adapter]
        if held.slot is not None or held.has_file or held.seed:
            return DropCopy(adapter, held.copy)
        if held.file:
            return DropFile(adapter, held.file)
        if self.disk_bytes + held.size <= self.budgets.disk_bytes:
            return Spill(adapter, held.size)
        near = (*self._on_device(), *islice(self._copies, _LOOKED_AT))
        spare = [each for each in near if each in self._files] or [
            each for each in self._copies if each in self._files
        ]
        if not spare:
            return None
        victim = min(spare, key=lambda each: (self._held[each].has_file, self._turn(each)))
        return DropFile(victim, self._held[victim].file)

    def _cost(self, adapter: AdapterId) -> tuple[int, int, int]:
        """Copies go in this order: those that cost a write-back later, then a read, then a write and a read."""
        held = self._held[adapter]
        kind = 0 if held.slot is not None else 1 if held.has_file or held.seed else 2
        return kind, *self._turn(adapter)

    def _turn(self, adapter: AdapterId) -> tuple[int, int]:
        """Whose turn it is to leave: the smallest one's."""
        if adapter in self._soon:
            return 1, -self._soon[adapter]
        return 0, self._held[adapter].needed
