"""Where states lie, and which move is next: decisions, budgets, pins."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loractl.bus.errors import OutOfSlots
from loractl.bus.ids import AdapterId
from loractl.trainer_actor.budgets import Budgets, Sizes
from loractl.trainer_actor.moves import Draw, DropCopy, DropFile, Load, Move, Read, Spill, Vacate, WriteBack
from loractl.trainer_actor.tiers import Tiers

A, B, C, D = (AdapterId(name) for name in "abcd")
SIZES = Sizes(row=10, state=8, fresh=2)


def tiers(
    *adapters: AdapterId, slots: int = 2, device: int = 1000, host: int = 1000, disk: int = 1000
) -> Tiers:
    made = Tiers(Budgets(slots=slots, device_bytes=device, host_bytes=host, disk_bytes=disk))
    for adapter in adapters:
        made.admit(adapter, SIZES)
    return made


def perform(on: Tiers, step: Callable[[], Move | None]) -> list[Move]:
    moves = []
    while (move := step()) is not None:
        on.performed(move)
        moves.append(move)
    return moves


def place(on: Tiers, adapter: AdapterId, *, soon: Sequence[AdapterId] = ()) -> list[Move]:
    on.needed([adapter], soon)
    return perform(on, lambda: on.step_to_device(adapter))


def train(on: Tiers, adapter: AdapterId, size: int = SIZES.state) -> list[Move]:
    moves = place(on, adapter)
    on.changed(adapter, size)
    return moves


def test_a_fresh_adapter_is_drawn_and_loaded_into_the_first_free_slot() -> None:
    on = tiers(A, B)

    assert place(on, A) == [Draw(A, 2), Load(A, 0)]
    assert place(on, B) == [Draw(B, 2), Load(B, 1)]


def test_placing_what_is_there_is_free() -> None:
    on = tiers(A)
    place(on, A)

    assert place(on, A) == []


def test_the_least_recently_needed_leaves_and_is_written_back_first() -> None:
    on = tiers(A, B, C)
    for adapter in (A, B, A):
        train(on, adapter)

    assert place(on, C) == [WriteBack(B), Vacate(B, 1), Draw(C, 2), Load(C, 1)]


def test_what_the_next_turns_need_leaves_last_the_soonest_last_of_all() -> None:
    on = tiers(A, B, C, D, slots=3)
    for adapter in (A, B, C):
        place(on, adapter)

    assert place(on, D, soon=[A, B])[0] == Vacate(C, 2)
    assert place(on, C, soon=[A, B, D])[0] == Vacate(D, 2)
    assert place(on, D, soon=[C, A, B])[0] == Vacate(B, 1)


def test_an_adapter_that_never_changed_is_not_written_back() -> None:
    on = tiers(A, B, slots=1)
    place(on, A)

    assert place(on, B)[0] == Vacate(A, 0)


def test_an_unchanged_adapter_is_not_written_back_a_second_time() -> None:
    on = tiers(A, B, slots=1)
    train(on, A)
    train(on, B)

    assert place(on, A) == [WriteBack(B), Vacate(B, 0), Load(A, 0)]
    assert place(on, B) == [Vacate(A, 0), Load(B, 0)]


def test_rows_of_different_sizes_share_the_bytes_of_the_device() -> None:
    on = tiers(A, B, slots=8, device=25)
    on.admit(C, Sizes(row=20, state=16, fresh=4))
    for adapter in (A, B):
        place(on, adapter)

    assert [move for move in place(on, C) if isinstance(move, Vacate)] == [Vacate(A, 0), Vacate(B, 1)]
    assert on.device_bytes == 20


def test_a_pinned_adapter_stays_and_a_claim_of_its_slot_is_refused_until_it_is_unpinned() -> None:
    on = tiers(A, B, slots=1)
    place(on, A)
    on.pin(A)

    with pytest.raises(OutOfSlots, match="1 slots and 1000 bytes is needed there now"):
        place(on, B)
    on.unpin(A)

    assert place(on, B) == [Vacate(A, 0), Draw(B, 2), Load(B, 0)]


def test_members_of_a_turn_never_evict_each_other() -> None:
    on = tiers(A, B, C, slots=2)
    for adapter in (A, B):
        place(on, adapter)

    moves = perform(on, lambda: on.step_to_device(C, beside=[A, C]))

    assert moves[0] == Vacate(B, 1)
    with pytest.raises(OutOfSlots, match="3 adapters of 30 bytes cannot lie on the device together"):
        on.check_together([A, B, C])


def test_a_full_host_spills_the_least_recently_needed_to_disk() -> None:
    on = tiers(A, B, C, slots=1, host=18)
    for adapter in (A, B, C):
        train(on, adapter)

    assert place(on, A) == [Spill(B, 8), DropCopy(B, 8), WriteBack(C), Vacate(C, 0), Load(A, 0)]
    assert [on.place_of(each) for each in (A, B, C)] == ["device", "disk", "host"]


def test_a_file_of_an_unchanged_state_is_not_written_again() -> None:
    on = tiers(A, B, slots=1, host=8)
    train(on, A)
    train(on, B)
    place(on, A)

    assert place(on, B) == [Vacate(A, 0), DropCopy(A, 8), Read(B, 8), Load(B, 0)]
    assert place(on, A) == [Vacate(B, 0), DropCopy(B, 8), Read(A, 8), Load(A, 0)]


def test_even_a_host_that_holds_one_state_only_lets_two_take_turns() -> None:
    on = tiers(A, B, slots=1, host=8)
    train(on, A)
    train(on, B)
    train(on, A)

    assert place(on, B) == [
        WriteBack(A),
        Vacate(A, 0),
        DropFile(A, 8),  # older than what is written in its place
        Spill(A, 8),
        DropCopy(A, 8),
        Read(B, 8),
        Load(B, 0),
    ]


def test_kept_copies_of_what_lies_on_the_device_go_before_anything_is_spilled() -> None:
    on = tiers(A, B, C, slots=2, host=18)
    for adapter in (A, B, C):  # A leaves
        train(on, adapter)
    perform(on, lambda: on.step_to_host(B))

    assert perform(on, lambda: on.step_to_host(C)) == [DropCopy(B, 8), WriteBack(C)]


def test_an_idle_adapter_sinks_and_comes_back() -> None:
    on = tiers(A)
    train(on, A)

    assert perform(on, lambda: on.step_to_disk(A)) == [
        WriteBack(A),
        Vacate(A, 0),
        Spill(A, 8),
        DropCopy(A, 8),
    ]
    assert (on.place_of(A), on.device_bytes, on.host_bytes, on.disk_bytes) == ("disk", 0, 0, 8)
    assert place(on, A) == [Read(A, 8), Load(A, 0)]


def test_a_pinned_adapter_does_not_sink() -> None:
    on = tiers(A)
    place(on, A)
    on.pin(A)

    assert on.step_to_disk(A) is None
    assert on.place_of(A) == "device"


def test_a_state_is_copied_for_the_host_without_leaving_its_slot() -> None:
    on = tiers(A)
    train(on, A)

    assert perform(on, lambda: on.step_to_host(A)) == [WriteBack(A)]
    assert perform(on, lambda: on.step_to_host(A)) == []
    assert on.place_of(A) == "device"


def test_another_state_replaces_row_copy_and_file() -> None:
    on = tiers(A, B, slots=1, host=8)
    train(on, A)
    train(on, B)
    place(on, A)
    perform(on, lambda: on.step_to_adopt(A, 6))

    on.adopted(A, 6)

    assert (on.place_of(A), on.slot_of(A), on.host_bytes) == ("host", None, 6)
    assert perform(on, lambda: on.step_to_disk(A)) == [DropFile(A, 8), Spill(A, 6), DropCopy(A, 6)]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (Sizes(row=11, state=4, fresh=1), "takes 11 bytes on the device, and trainer.device_bytes is 10"),
        (Sizes(row=1, state=21, fresh=1), "takes 21 bytes of host memory, and trainer.host_bytes is 20"),
    ],
)
def test_what_could_never_be_placed_is_refused_with_the_numbers(sizes: Sizes, words: str) -> None:
    on = tiers(device=10, host=20)

    with pytest.raises(OutOfSlots, match=words):
        on.admit(A, sizes)

    assert not on.admitted(A)


def test_states_that_budgets_cannot_hold_are_refused_before_anything_moves() -> None:
    on = tiers(A, B, C, D, slots=1, host=16, disk=24)
    for adapter in (A, B, C):
        train(on, adapter)

    with pytest.raises(
        OutOfSlots, match=r"3 adapters have 24 bytes set aside already.*trainer.disk_bytes 24"
    ):
        place(on, D)
    with pytest.raises(OutOfSlots):
        on.admit(AdapterId("e"), SIZES)
    assert on.slot_of(C) == 0

    on.remove(A)
    assert place(on, D)[-1] == Load(D, 0)


def test_any_number_of_adapters_may_be_registered_and_score_before_they_are_trained() -> None:
    on = tiers(slots=2, host=16, disk=8)
    many = [AdapterId(str(number)) for number in range(5000)]
    for adapter in many:
        on.admit(adapter, SIZES)

    for adapter in many:
        place(on, adapter)

    assert on.host_bytes <= 16
    assert on.disk_bytes == 0


def test_the_room_says_what_a_turn_may_hold() -> None:
    on = tiers(A, B, C, slots=2, device=25)
    place(on, A)
    on.pin(A)

    room = on.room()

    assert (room.slots, room.device_bytes, room.row_bytes(B)) == (2, 25, 10)
    assert (room.on_device, room.pinned) == ({A}, {A})
    assert room.fits([B])
    assert room.fits([A, B])
    assert not room.fits([B, C])


MANY = [AdapterId(name) for name in "abcdef"]


class Placements(RuleBasedStateMachine):
    """Random admissions, turns, changes, pins, sinkings, removals; and any move may fail."""

    @initialize(
        slots=st.integers(1, 3),
        device=st.integers(5, 40),
        host=st.integers(0, 40),
        disk=st.integers(0, 60),
    )
    def start(self, slots: int, device: int, host: int, disk: int) -> None:
        self.budgets = Budgets(slots=slots, device_bytes=device, host_bytes=host, disk_bytes=disk)
        self.tiers = Tiers(self.budgets)
        self.sizes: dict[AdapterId, Sizes] = {}
        self.truth: dict[AdapterId, int] = {}  # what each adapter's state is: a version, 0 as it began
        self.rows: dict[AdapterId, tuple[int, int]] = {}  # slot, version
        self.copies: dict[AdapterId, tuple[int, int]] = {}  # version, bytes
        self.files: dict[AdapterId, tuple[int, int]] = {}
        self.present: dict[AdapterId, int] = {}  # bytes of the state as it is
        self.pins: list[AdapterId] = []
        self.versions = 0

    def admitted(self) -> list[AdapterId]:
        return sorted(getattr(self, "sizes", {}))

    def perform(self, step: Callable[[], Move | None], data: st.DataObject) -> bool:
        """False: a move failed, as a copy or a disk may."""
        for _ in range(200):
            move = step()
            if move is None:
                return True
            if data.draw(st.integers(0, 9)) == 0:
                return False
            self.carry_out(move)
            self.tiers.performed(move)
            self.budgets_hold()
        raise AssertionError("it never ends")

    def carry_out(self, move: Move) -> None:
        adapter = move.adapter
        match move:
            case Draw(size=size):
                assert self.truth[adapter] == 0
                self.copies[adapter] = (0, size)
            case Read(size=size):
                assert self.files[adapter][1] == size
                self.copies[adapter] = self.files[adapter]
            case Load(slot=slot):
                assert slot not in [taken for taken, _ in self.rows.values()]
                self.rows[adapter] = (slot, self.copies[adapter][0])
            case WriteBack():
                self.copies[adapter] = (self.rows[adapter][1], self.present[adapter])
            case Vacate():
                assert adapter not in self.pins
                assert self.truth[adapter] in (0, self.copies.get(adapter, (0,))[0], self.held(adapter))
                del self.rows[adapter]
            case Spill(size=size):
                assert adapter not in self.files
                self.files[adapter] = self.copies[adapter]
                assert self.files[adapter][1] == size
            case DropCopy(size=size):
                assert self.copies.pop(adapter)[1] == size
            case DropFile(size=size):
                assert self.files.pop(adapter)[1] == size

    def held(self, adapter: AdapterId) -> int:
        return self.files.get(adapter, (0, 0))[0]

    @rule(
        adapter=st.sampled_from(MANY), row=st.integers(1, 12), fresh=st.integers(1, 4), more=st.integers(0, 8)
    )
    def admit(self, adapter: AdapterId, row: int, fresh: int, more: int) -> None:
        if adapter in self.sizes:
            return
        sizes = Sizes(row=row, state=fresh + more, fresh=fresh)
        try:
            self.tiers.admit(adapter, sizes)
        except OutOfSlots:
            return
        self.sizes[adapter], self.truth[adapter], self.present[adapter] = sizes, 0, fresh

    @precondition(lambda self: self.admitted())
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        """Place some adapters together and change some of them."""
        members = data.draw(st.lists(st.sampled_from(self.admitted()), min_size=1, max_size=3, unique=True))
        soon = data.draw(st.lists(st.sampled_from(self.admitted()), max_size=3))
        self.tiers.needed(members, soon)
        try:
            self.tiers.check_together(members)
        except OutOfSlots:
            together = {*members, *self.pins}
            size = sum(self.sizes[each].row for each in together)
            assert len(together) > self.budgets.slots or size > self.budgets.device_bytes
            return
        for member in members:
            placed = self.tiers.slot_of(member) is not None
            try:
                if not self.perform(lambda m=member: self.tiers.step_to_device(m, beside=members), data):
                    return
            except OutOfSlots:
                assert not placed
                assert self.truth[member] == 0, "a state that was admitted always finds its way back"
                return
        for member in members:
            assert member in self.rows
            if data.draw(st.booleans()):
                self.versions += 1
                self.truth[member] = self.versions
                self.rows[member] = (self.rows[member][0], self.versions)
                sizes = self.sizes[member]
                self.present[member] = data.draw(st.integers(sizes.fresh, sizes.state))
                self.tiers.changed(member, self.present[member])

    @precondition(lambda self: self.admitted())
    @rule(data=st.data())
    def look_at(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from(self.admitted()))
        if self.perform(lambda: self.tiers.step_to_host(adapter), data):
            assert self.copies[adapter][0] == self.truth[adapter]

    @precondition(lambda self: self.admitted())
    @rule(data=st.data())
    def sink(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from(self.admitted()))
        if self.perform(lambda: self.tiers.step_to_disk(adapter), data) and adapter not in self.pins:
            assert adapter not in self.rows
            full = self.tiers.disk_bytes + self.present[adapter] > self.budgets.disk_bytes
            assert adapter not in self.copies or full

    @precondition(lambda self: [each for each in self.admitted() if each not in self.pins])
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from([each for each in self.admitted() if each not in self.pins]))
        sizes = self.sizes[adapter]
        size = data.draw(st.integers(sizes.fresh, sizes.state))
        try:
            if not self.perform(lambda: self.tiers.step_to_adopt(adapter, size), data):
                return
        except OutOfSlots:
            assert self.truth[adapter] == 0
            return
        self.tiers.adopted(adapter, size)
        self.versions += 1
        self.truth[adapter], self.present[adapter] = self.versions, size
        self.copies[adapter] = (self.versions, size)
        self.rows.pop(adapter, None)

    @precondition(lambda self: getattr(self, "rows", {}))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from(sorted(self.rows)))
        self.tiers.pin(adapter)
        self.pins.append(adapter)

    @precondition(lambda self: getattr(self, "pins", []))
    @rule()
    def unpin(self) -> None:
        self.tiers.unpin(self.pins.pop())

    @precondition(lambda self: [each for each in self.admitted() if each not in self.pins])
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        adapter = data.draw(st.sampled_from([each for each in self.admitted() if each not in self.pins]))
        self.tiers.remove(adapter)
        for held in (self.sizes, self.truth, self.present, self.rows, self.copies, self.files):
            held.pop(adapter, None)

    def budgets_hold(self) -> None:
        rows = sum(self.sizes[each].row for each in self.rows)
        copies = sum(size for _, size in self.copies.values())
        files = sum(size for _, size in self.files.values())
        assert (rows, copies, files) == (
            self.tiers.device_bytes,
            self.tiers.host_bytes,
            self.tiers.disk_bytes,
        )
        assert rows <= self.budgets.device_bytes
        assert copies <= self.budgets.host_bytes
        assert files <= self.budgets.disk_bytes

    @invariant()
    def nothing_is_lost_and_every_place_is_told_truly(self) -> None:
        for adapter in self.admitted():
            truth = self.truth[adapter]
            if adapter in self.rows:
                assert self.rows[adapter] == (self.tiers.slot_of(adapter), truth)
                assert self.tiers.place_of(adapter) == "device"
            elif adapter in self.copies:
                assert self.copies[adapter][0] == truth
                assert self.tiers.place_of(adapter) == "host"
            else:
                assert truth == 0 or self.files[adapter][0] == truth
                assert self.tiers.place_of(adapter) == "disk"

    @invariant()
    def pinned_adapters_stay_and_all_others_may_leave(self) -> None:
        if self.admitted():
            self.budgets_hold()
            room = self.tiers.room()
            assert room.pinned == {*self.pins}
            for adapter in self.rows:
                assert (self.tiers.step_to_disk(adapter) is None) == (adapter in self.pins)


Placements.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPlacements = Placements.TestCase
