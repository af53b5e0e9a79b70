"""Placement of adapters in device slots: decisions, pins, memory, generations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loractl.bus.errors import OutOfSlots
from loractl.bus.ids import AdapterId
from loractl.trainer_actor.slot_table import SlotTable, Swap

A, B, C = (AdapterId(name) for name in "abc")


def table(*adapters: AdapterId, slots: int = 2, host_bytes: int = 1000) -> SlotTable:
    made = SlotTable(slots=slots, host_bytes=host_bytes)
    for adapter in adapters:
        made.admit(adapter, 10)
    return made


def perform(on: SlotTable, swap: Swap | None) -> None:
    if swap is not None:
        if swap.evict is not None:
            on.vacated(swap.slot)
        on.occupied(swap.slot, swap.load)


def test_a_free_slot_is_taken_before_anyone_is_evicted() -> None:
    slots = table(A, B)

    perform(slots, slots.claim(A))

    assert slots.claim(B) == Swap(slot=1, load=B, evict=None)


def test_claiming_what_is_there_is_free() -> None:
    slots = table(A)
    perform(slots, slots.claim(A))

    assert slots.claim(A) is None


def test_the_least_recently_needed_leaves() -> None:
    slots = table(A, B, C)
    for adapter in (A, B, A):
        perform(slots, slots.claim(adapter))

    assert slots.claim(C) == Swap(slot=1, load=C, evict=B)


def test_a_pinned_adapter_stays() -> None:
    slots = table(A, B, C)
    for adapter in (A, B):
        perform(slots, slots.claim(adapter))
    slots.pin(A)

    assert slots.claim(C) == Swap(slot=1, load=C, evict=B)


def test_when_all_slots_are_pinned_a_claim_is_refused_and_possible_again_after() -> None:
    slots = table(A, B, slots=1)
    perform(slots, slots.claim(A))
    slots.pin(A)

    with pytest.raises(OutOfSlots):
        slots.claim(B)
    slots.unpin(A)

    assert slots.claim(B) == Swap(slot=0, load=B, evict=A)


def test_a_claim_decides_and_moves_nothing() -> None:
    slots = table(A, B, slots=1)
    perform(slots, slots.claim(A))

    slots.claim(B)

    assert slots.slot_of(A) == 0
    assert slots.slot_of(B) is None


def test_an_adapter_that_the_host_could_not_hold_is_refused_with_the_numbers() -> None:
    slots = table(A, slots=1, host_bytes=19)

    with pytest.raises(OutOfSlots, match=r"2 adapters on 1 device slots need 20 bytes.*host_bytes is 19"):
        slots.admit(B, 10)

    assert not slots.admitted(B)


def test_adapters_that_all_fit_on_the_device_need_no_host_memory() -> None:
    slots = table(A, B, slots=2, host_bytes=0)

    assert slots.admitted(B)
    with pytest.raises(OutOfSlots):
        slots.admit(C, 10)


def test_a_removed_adapter_frees_its_slot_and_its_memory() -> None:
    slots = table(A, B, slots=1, host_bytes=20)
    perform(slots, slots.claim(A))

    assert slots.remove(A) == 0
    assert slots.remove(B) is None

    slots.admit(C, 20)
    assert slots.claim(C) == Swap(slot=0, load=C, evict=None)


def test_a_slot_never_has_the_same_generation_twice() -> None:
    slots = table(A, B, slots=1)
    generations = []
    for adapter in (A, B, A, A, B):
        perform(slots, slots.claim(adapter))
        occupant = slots.occupant(0)
        assert occupant is not None
        generations.append(occupant.generation)

    assert generations == [1, 2, 3, 3, 4]


SIZES = {AdapterId(name): size for name, size in zip("abcdef", (1, 2, 3, 5, 8, 13), strict=True)}


class Placements(RuleBasedStateMachine):
    """Random admissions, claims, pins, removals and copies that fail half-way."""

    @initialize(slots=st.integers(1, 3), host_bytes=st.integers(0, 40))
    def start(self, slots: int, host_bytes: int) -> None:
        self.slots, self.host_bytes = slots, host_bytes
        self.table = SlotTable(slots=slots, host_bytes=host_bytes)
        self.host: set[AdapterId] = set()
        self.unborn: set[AdapterId] = set()  # never in a slot yet: their state exists nowhere
        self.pins: list[AdapterId] = []

    def admitted(self) -> list[AdapterId]:
        return [adapter for adapter in SIZES if self.table.admitted(adapter)]

    @rule(adapter=st.sampled_from(sorted(SIZES)))
    def admit(self, adapter: AdapterId) -> None:
        if not self.table.admitted(adapter):
            try:
                self.table.admit(adapter, SIZES[adapter])
            except OutOfSlots:
                return
            self.host.add(adapter)
            self.unborn.add(adapter)

    @precondition(lambda self: self.admitted())
    @rule(data=st.data(), fails=st.booleans())
    def claim(self, data: st.DataObject, fails: bool) -> None:
        adapter = data.draw(st.sampled_from(self.admitted()))
        try:
            swap = self.table.claim(adapter)
        except OutOfSlots:
            assert len({*self.pins}) == self.slots
            return
        if swap is None:
            assert adapter not in self.host
            return
        if swap.evict is not None:
            assert swap.evict not in self.pins
            self.host.add(swap.evict)
            self.table.vacated(swap.slot)
        assert sum(SIZES[each] for each in self.host - self.unborn) <= self.host_bytes
        if not fails:
            self.table.occupied(swap.slot, adapter)
            self.host.remove(adapter)
            self.unborn.discard(adapter)

    @precondition(lambda self: any(self.table.slot_of(a) is not None for a in self.admitted()))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        placed = [a for a in self.admitted() if self.table.slot_of(a) is not None]
        adapter = data.draw(st.sampled_from(placed))
        self.table.pin(adapter)
        self.pins.append(adapter)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.table.unpin(self.pins.pop())

    @precondition(lambda self: [a for a in self.admitted() if a not in self.pins])
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from([a for a in self.admitted() if a not in self.pins]))
        self.table.remove(adapter)
        self.host.discard(adapter)

    @invariant()
    def each_adapter_lies_in_one_place(self) -> None:
        if not hasattr(self, "table"):
            return
        for adapter in self.admitted():
            slot = self.table.slot_of(adapter)
            assert (slot is None) == (adapter in self.host)
            if slot is not None:
                occupant = self.table.occupant(slot)
                assert occupant is not None
                assert occupant.adapter == adapter

    @invariant()
    def pinned_adapters_stay(self) -> None:
        for adapter in getattr(self, "pins", []):
            assert self.table.slot_of(adapter) is not None


Placements.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPlacements = Placements.TestCase
