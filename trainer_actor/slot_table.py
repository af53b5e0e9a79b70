"""Which adapter lies in which device slot, and which of them leaves when another needs one.

Owns placement alone and returns it as decisions; `resident` moves the bytes and reports back with
`vacated` and `occupied`, so a copy that fails leaves the table telling the truth. Pure.

An adapter is admitted once, which reserves host memory for the worst case: whatever swaps follow,
a claim of an admitted adapter never lacks it. An adapter that is not admitted exists on disk only.
"""

from dataclasses import dataclass

from ..bus.errors import OutOfSlots
from ..bus.ids import AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Bring `load` into `slot`; first bring `evict`, if any, from there to the host."""

    slot: int
    load: AdapterId
    evict: AdapterId | None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """generation: a number that never recurs, so nothing is mistaken for what lay here before."""

    adapter: AdapterId
    generation: int


class SlotTable:
    def __init__(self, *, slots: int, host_bytes: int) -> None:
        self._slots: list[Occupancy | None] = [None] * slots
        self._host_bytes = host_bytes
        self._state_bytes: dict[AdapterId, int] = {}
        self._slot_of: dict[AdapterId, int] = {}
        self._needed: dict[AdapterId, int] = {}  # when each was last claimed, as a count
        self._pins: dict[AdapterId, int] = {}
        self._claims = 0
        self._generations = 0

    def admitted(self, adapter: AdapterId) -> bool:
        return adapter in self._state_bytes

    def slot_of(self, adapter: AdapterId) -> int | None:
        return self._slot_of.get(adapter)

    def occupant(self, slot: int) -> Occupancy | None:
        return self._slots[slot]

    def admit(self, adapter: AdapterId, state_bytes: int) -> None:
        """Reserve memory for one more adapter.

        Raises:
            OutOfSlots: the host could not hold what does not fit on the device. Nothing changed.
        """
        assert not self.admitted(adapter)
        needed = self._worst_host_bytes([*self._state_bytes.values(), state_bytes])
        if needed > self._host_bytes:
            raise OutOfSlots(
                f"no memory for another adapter: {len(self._state_bytes) + 1} adapters on "
                f"{len(self._slots)} device slots need {needed} bytes of host memory, of which this one "
                f"has {state_bytes}, and trainer.host_bytes is {self._host_bytes}; "
                "delete an adapter, choose a smaller rank or raise trainer.host_bytes"
            )
        self._state_bytes[adapter] = state_bytes

    def claim(self, adapter: AdapterId) -> Swap | None:
        """Decide how an admitted adapter gets a slot; None if it has one. Nothing moves yet.

        Raises:
            OutOfSlots: every slot is pinned.
        """
        assert self.admitted(adapter)
        self._claims += 1
        self._needed[adapter] = self._claims
        if adapter in self._slot_of:
            return None
        if None in self._slots:
            return Swap(slot=self._slots.index(None), load=adapter, evict=None)
        movable = [other for other in self._slot_of if other not in self._pins]
        if not movable:
            raise OutOfSlots(f"all {len(self._slots)} device slots are pinned by operations under way")
        victim = min(movable, key=self._last_needed)
        return Swap(slot=self._slot_of[victim], load=adapter, evict=victim)

    def vacated(self, slot: int) -> None:
        """What lay in the slot now lies on the host, or nowhere."""
        occupancy = self._slots[slot]
        assert occupancy is not None, f"slot {slot} is empty already"
        assert occupancy.adapter not in self._pins, f"slot {slot} is pinned"
        del self._slot_of[occupancy.adapter]
        self._slots[slot] = None

    def occupied(self, slot: int, adapter: AdapterId) -> Occupancy:
        assert self._slots[slot] is None, f"slot {slot} is in use"
        assert self.admitted(adapter), f"{adapter} has no memory reserved"
        assert adapter not in self._slot_of, f"{adapter} lies in another slot"
        self._generations += 1
        occupancy = Occupancy(adapter, self._generations)
        self._slots[slot] = occupancy
        self._slot_of[adapter] = slot
        return occupancy

    def pin(self, adapter: AdapterId) -> None:
        """Keep an adapter in its slot until as many `unpin` follow."""
        assert adapter in self._slot_of, "only what lies in a slot can be pinned"
        self._pins[adapter] = self._pins.get(adapter, 0) + 1

    def unpin(self, adapter: AdapterId) -> None:
        self._pins[adapter] -= 1
        if not self._pins[adapter]:
            del self._pins[adapter]

    def remove(self, adapter: AdapterId) -> int | None:
        """Forget an adapter and free its memory. Returns the slot that it leaves, if it had one."""
        slot = self._slot_of.get(adapter)
        if slot is not None:
            self.vacated(slot)
        self._state_bytes.pop(adapter, None)
        self._needed.pop(adapter, None)
        return slot

    def _last_needed(self, adapter: AdapterId) -> int:
        return self._needed[adapter]

    def _worst_host_bytes(self, sizes: list[int]) -> int:
        """Host memory in the middle of the worst swap: one slot is between its two adapters."""
        if len(sizes) <= len(self._slots):
            return 0
        return sum(sorted(sizes, reverse=True)[: len(sizes) - len(self._slots) + 1])
