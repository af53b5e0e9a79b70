"""Where training states are: in device slots, on the host, or on disk only; and how they move.

Placement is decided by `SlotTable` and performed here, in an order that a failing copy cannot turn
into a loss: a state leaves its old place only once it lies in the new one. What a state consists of
is the engine's.
"""

from collections.abc import Callable

import structlog

from ..bus.ids import AdapterId
from ..bus.messages import LoraSpec
from .bank import HostState
from .engine import TrainEngine
from .slot_table import SlotTable, Swap

log = structlog.get_logger()


class Residents:
    """The states of all admitted adapters. One that was admitted and is nowhere is fresh."""

    def __init__(self, engine: TrainEngine, table: SlotTable) -> None:
        self._engine = engine
        self._table = table
        self._loras: dict[AdapterId, LoraSpec] = {}
        self._host: dict[AdapterId, HostState] = {}

    def admitted(self, adapter: AdapterId) -> bool:
        return self._table.admitted(adapter)

    def admit(self, adapter: AdapterId, lora: LoraSpec, read: Callable[[], HostState | None]) -> None:
        """Take in an adapter with the state that `read` brings, or fresh from its seed for None.

        Raises:
            OutOfSlots: before anything is read. Whatever `read` raises leaves no trace either.
        """
        self._table.admit(adapter, self._engine.state_bytes(lora))
        try:
            state = read()
        except BaseException:
            self._table.remove(adapter)
            raise
        self._loras[adapter] = lora
        if state is not None:
            self._host[adapter] = state

    def place(self, adapter: AdapterId) -> int:
        """The slot in which the adapter lies from now until another one needs it.

        Raises:
            OutOfSlots: every slot is pinned.
        """
        swap = self._table.claim(adapter)
        if swap is not None:
            self._perform(swap)
        slot = self._table.slot_of(adapter)
        assert slot is not None
        return slot

    def pin(self, adapter: AdapterId) -> None:
        self._table.pin(adapter)

    def unpin(self, adapter: AdapterId) -> None:
        self._table.unpin(adapter)

    def state(self, adapter: AdapterId) -> HostState:
        """The adapter's present state, to be read only. One on the host is not moved for it."""
        if (state := self._host.get(adapter)) is not None:
            return state
        return self._engine.copy_out(self.place(adapter))

    def replace(self, adapter: AdapterId, state: HostState) -> None:
        """Give an adapter another state. Nothing is copied here, so nothing can fail half-way."""
        slot = self._table.slot_of(adapter)
        if slot is not None:
            self._table.vacated(slot)
            self._engine.clear(slot)
        self._host[adapter] = state

    def remove(self, adapter: AdapterId) -> None:
        """Forget an adapter wherever it lies; its slot holds nothing of it afterwards."""
        slot = self._table.remove(adapter)
        if slot is not None:
            self._engine.clear(slot)
        self._host.pop(adapter, None)
        self._loras.pop(adapter, None)

    def _perform(self, swap: Swap) -> None:
        if swap.evict is not None:
            self._host[swap.evict] = self._engine.copy_out(swap.slot)
            self._table.vacated(swap.slot)
        incoming = self._host.get(swap.load)
        if incoming is None:
            self._engine.fresh(swap.slot, self._loras[swap.load])
        else:
            self._engine.copy_in(swap.slot, incoming)
        # Only now: had the copy failed, the slot would be free and both states on the host.
        occupancy = self._table.occupied(swap.slot, swap.load)
        self._host.pop(swap.load, None)
        log.debug(
            "slot.swapped",
            slot=swap.slot,
            load=swap.load,
            evict=swap.evict,
            generation=occupancy.generation,
        )
