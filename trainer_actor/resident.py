"""Where training states are: in device slots, in host memory, on disk; and how they move.

Which move is next is decided by `Tiers`, and `Movers` performs it. A state leaves its old place only
once it lies in the new one, and a move counts only once it is done, so whatever a move raises leaves
every state whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from ..bus.errors import OutOfSlots, StorageFailed
from ..bus.ids import AdapterId
from ..bus.messages import LoraSpec
from .bank import Bank, HostState
from .budgets import Budgets, Room, Sizes
from .copies import Copies
from .holdings import Place
from .movers import Movers
from .moves import Load, Move
from .spill import SpillStore
from .tiers import Tiers

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Moved:
    """size_bytes: that travelled. loaded: they brought the adapter to the device."""

    adapter: AdapterId
    size_bytes: int
    loaded: bool


class Residents:
    """The states of all admitted adapters. One that was admitted and is nowhere is fresh."""

    def __init__(self, bank: Bank, budgets: Budgets, spill: SpillStore, copies: Copies | None = None) -> None:
        self._bank = bank
        self._tiers = Tiers(budgets)
        self._movers = Movers(bank, spill, copies)
        self._in_use: frozenset[AdapterId] = frozenset()
        self._moved: list[Moved] = []

    # --- what is where -----------------------------------------------------------------------------

    def admitted(self, adapter: AdapterId) -> bool:
        return self._tiers.admitted(adapter)

    def on_device(self, adapter: AdapterId) -> bool:
        return self._tiers.slot_of(adapter) is not None

    def place_of(self, adapter: AdapterId) -> Place:
        return self._tiers.place_of(adapter)

    def room(self) -> Room:
        return self._tiers.room()

    def take_moves(self) -> list[Moved]:
        """What moved since the last call."""
        moved, self._moved = self._moved, []
        return moved

    # --- coming and going --------------------------------------------------------------------------

    def admit(
        self, adapter: AdapterId, lora: LoraSpec, read: Callable[[], HostState | None] | None = None
    ) -> None:
        """Take in an adapter with the state that `read` brings, or fresh from its seed.

        Raises:
            OutOfSlots: before anything is read. Whatever `read` raises leaves no trace either.
        """
        layout = self._bank.layouts.of(lora)
        sizes = Sizes(
            row=layout.device_row_bytes(self._bank.dtype.itemsize),
            state=layout.host_state_bytes(),
            fresh=self._movers.fresh_bytes(lora),
        )
        self._look_at_rows()
        self._tiers.admit(adapter, sizes)
        self._movers.meet(adapter, lora)
        if read is None:
            return
        try:
            self._run(partial(self._tiers.step_to_adopt, adapter, sizes.state))
            if (state := read()) is not None:
                self._adopt(adapter, state)
        except BaseException:
            self.remove(adapter)
            raise

    def make_room(self, adapter: AdapterId) -> None:
        """Have room for any other state of the adapter: to be called before work on such a state begins.

        Raises:
            OutOfSlots, StorageFailed: nothing changed.
        """
        self._look_at_rows()
        size_bytes = self._bank.layouts.of(self._movers.lora_of(adapter)).host_state_bytes()
        self._run(partial(self._tiers.step_to_adopt, adapter, size_bytes))

    def replace(self, adapter: AdapterId, state: HostState) -> None:
        """Give an adapter another state, whose memory is the adapter's from here on. Nothing is copied.

        A disk that refuses to make room does not hinder it, for the state is in memory already.

        Raises:
            OutOfSlots: an adapter that never changed finds no room to begin to; nothing changed.
        """
        self._look_at_rows()
        try:
            self._run(partial(self._tiers.step_to_adopt, adapter, state.size_bytes))
        except StorageFailed as error:
            log.warning("state.beyond_host_bytes", adapter=adapter, reason=error.message)
        self._adopt(adapter, state)

    def drop_gradients(self, adapter: AdapterId) -> None:
        """Raises OutOfSlots, StorageFailed: as `state`; nothing changed."""
        self.replace(adapter, replace(self.state(adapter), gradients=None, tokens=0))

    def remove(self, adapter: AdapterId) -> None:
        """Forget an adapter wherever it lies. Unknown is fine."""
        if not self.admitted(adapter):
            return
        self._movers.forget(adapter, self._tiers.remove(adapter))
        self._in_use -= {adapter}

    # --- to the device -----------------------------------------------------------------------------

    def place(self, adapter: AdapterId, soon: Sequence[AdapterId] = ()) -> int:
        """The slot in which the adapter lies from now until another one needs it.

        Raises:
            OutOfSlots: all slots are pinned, or there is no room for what the state may become.
            StorageFailed: the disk refused to make room, or to give the state back.
        """
        self._look_at_rows()
        self._tiers.needed([adapter], soon)
        self._in_use |= {adapter}
        return self._placed(adapter, beside=frozenset())

    def place_all(self, adapters: Sequence[AdapterId], soon: Sequence[AdapterId] = ()) -> list[int]:
        """The slots in which the adapters lie together; none of them makes room for another.

        Raises:
            OutOfSlots: they do not fit beside what is pinned, or as `place`.
            StorageFailed: as `place`. Some of them may be there already.
        """
        self._look_at_rows()
        self._tiers.needed(adapters, soon)
        self._tiers.check_together(adapters)
        self._in_use = frozenset(adapters)
        return [self._placed(adapter, beside=self._in_use) for adapter in adapters]

    def prefetch(self, adapters: Sequence[AdapterId]) -> None:
        """Bring in whom the next turns need, nearest first, as far as they fit beside those of this turn.

        Nobody leaves for one whose turn is later, so those that lie on the device are among `adapters`, too.
        Call it before the pass is given to the device: copies then run behind it. What cannot be
        done is left to `place`, which can say so to whom it concerns.
        """
        self._look_at_rows()
        self._tiers.needed((), soon=adapters)
        beside = set(self._in_use)
        for adapter in filter(self.admitted, adapters):
            beside.add(adapter)
            try:
                self._run(partial(self._tiers.step_to_device, adapter, beside=beside))
            except (OutOfSlots, StorageFailed) as error:
                log.debug("slot.not_prefetched", adapter=adapter, reason=error.message)
                return

    def pin(self, adapter: AdapterId) -> None:
        """Keep an adapter in its slot until as many `unpin` follow."""
        self._tiers.pin(adapter)

    def unpin(self, adapter: AdapterId) -> None:
        self._tiers.unpin(adapter)

    # --- to host and disk ----------------------------------------------------------------------------

    def state(self, adapter: AdapterId) -> HostState:
        """The adapter's present state, to be read at once and only read; it stays in its slot if it has one.

        Raises:
            OutOfSlots, StorageFailed: as `place`.
        """
        self._look_at_rows()
        self._run(partial(self._tiers.step_to_host, adapter))
        return self._movers.copy_of(adapter)

    def look(self, adapter: AdapterId) -> HostState:
        """The same where it lies, on the device as it may be: nothing moves that need not.

        Raises:
            OutOfSlots, StorageFailed: as `place`, for one that lies on disk.
        """
        return self._movers.row_of(adapter) if self.on_device(adapter) else self.state(adapter)

    def sink(self, adapter: AdapterId) -> None:
        """Bring an adapter to disk, if nothing pins it and the disk has room.

        Raises:
            StorageFailed: the disk refused.
        """
        self._look_at_rows()
        self._run(partial(self._tiers.step_to_disk, adapter))

    # --- moving ------------------------------------------------------------------------------------

    def _placed(self, adapter: AdapterId, *, beside: frozenset[AdapterId]) -> int:
        if not self.on_device(adapter):
            self._run(partial(self._tiers.step_to_device, adapter, beside=beside))
        slot = self._tiers.slot_of(adapter)
        assert slot is not None
        self._movers.hand_to_compute(adapter)
        return slot

    def _run(self, step: Callable[[], Move | None]) -> None:
        while (move := step()) is not None:
            size_bytes = self._movers.perform(move)
            self._tiers.performed(move)
            if size_bytes:
                self._moved.append(Moved(move.adapter, size_bytes, isinstance(move, Load)))
            log.debug("state.moved", move=type(move).__name__, adapter=move.adapter, bytes=size_bytes)

    def _look_at_rows(self) -> None:
        """Tell the tiers what passes and steps did to the rows since."""
        for slot, adapter in self._tiers.occupied():
            size = self._movers.changed_bytes(slot)
            if size:
                self._tiers.changed(adapter, size)

    def _adopt(self, adapter: AdapterId, state: HostState) -> None:
        slot = self._tiers.adopted(adapter, state.size_bytes)
        self._movers.adopt(adapter, state, slot)
