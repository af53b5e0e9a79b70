"""States on their ways between device, host memory and disk: bit for bit, only what changed, whatever fails."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from loractl.bus.errors import OutOfSlots, StorageFailed
from loractl.bus.ids import AdapterId
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, run, spec, state_in
from loractl.tests.trainer_actor.other_copies import FailingCopies, LateCopies
from loractl.trainer_actor.bank import PIECES, HostState
from loractl.trainer_actor.budgets import Budgets
from loractl.trainer_actor.copies import Copies, CopiesAtOnce
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.resident import Moved, Residents
from loractl.trainer_actor.spill import SpillStore

A, B, C = (AdapterId(name) for name in "abc")
LORA = spec()
MANY = {
    AdapterId("wide"): spec(rank=12, seed=2),
    AdapterId("attn"): spec(seed=3, train_mlp=False, train_unembed=False),
    AdapterId("mlp"): spec(seed=4, train_attn=False, train_unembed=False),
    AdapterId("all"): spec(seed=5),
    AdapterId("like-all"): spec(seed=6),
}
NEVER_STEPPED = AdapterId("like-all")
EMPTY: Sequence[AdapterId] = ()
PLENTY = 1 << 40


class Scene:
    """An engine and its residents."""

    def __init__(
        self,
        engine: TrainEngine,
        directory: Path,
        *,
        slots: int | None = None,
        states: float = 1000.0,
        copies: Copies | None = None,
    ) -> None:
        self.engine = engine
        self.state_bytes = engine.state_bytes(spec(rank=12))
        budgets = Budgets(
            slots=slots or engine.slots,
            device_bytes=PLENTY,
            host_bytes=int(states * self.state_bytes),
            disk_bytes=PLENTY,
        )
        self.spill = directory / "spill"
        self.residents = Residents(engine.bank, budgets, SpillStore(self.spill), copies)

    def admit(self, *adapters: AdapterId, lora: LoraSpec = LORA) -> None:
        for adapter in adapters:
            self.residents.admit(adapter, lora)

    def gather(self, adapter: AdapterId, data: int, *, lora: LoraSpec = LORA) -> np.ndarray:
        part = batch(data, [5, 3], slot=self.residents.place(adapter), lora=lora)
        return run(self.engine, part)[0].logprobs

    def score(self, adapter: AdapterId, data: int, *, lora: LoraSpec = LORA) -> np.ndarray:
        slot = self.residents.place(adapter)
        return run(self.engine, batch(data, [5, 3], slot=slot, lora=lora, backward=False))[0].logprobs

    def step(self, adapter: AdapterId) -> None:
        self.engine.optim_step(self.residents.place(adapter), adam())

    def train(self, adapter: AdapterId, data: int, *, lora: LoraSpec = LORA) -> None:
        self.gather(adapter, data, lora=lora)
        self.step(adapter)

    def state(self, adapter: AdapterId) -> HostState:
        """A copy of the present state."""
        state = self.residents.state(adapter)
        pieces = {name: getattr(state, name) for name in PIECES}
        copies = {name: None if piece is None else piece.clone() for name, piece in pieces.items()}
        return HostState(lora=state.lora, step=state.step, tokens=state.tokens, **copies)

    def moves(self, adapter: AdapterId) -> list[Moved]:
        return [moved for moved in self.residents.take_moves() if moved.adapter == adapter]


Open = Callable[..., Scene]


@pytest.fixture
def scene(lab: Lab, tmp_path: Path) -> Open:
    def open_one(*, dtype: str = "float32", **settings: object) -> Scene:
        return Scene(lab.engine("llama", dtype=dtype), tmp_path, **settings)  # type: ignore[arg-type]

    return open_one


def same(first: HostState, second: HostState) -> bool:
    """Every tensor bit for bit, and every number."""
    scalars = [(state.lora, state.step, state.tokens) for state in (first, second)]
    pieces = [(getattr(first, name), getattr(second, name)) for name in PIECES]
    return scalars[0] == scalars[1] and all(
        (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))
        for one, other in pieces
    )


# --- nothing is lost ---------------------------------------------------------------------------------


def test_every_piece_and_number_of_a_state_survives_host_and_disk(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B)
    on.train(A, 1)
    on.gather(A, 2)  # a window is open
    before = on.state(A)
    assert (before.step, before.tokens) == (1, 8)
    assert all(getattr(before, name) is not None for name in PIECES)

    on.residents.place(B)
    assert on.residents.place_of(A) == "host"
    assert same(on.state(A), before)
    on.residents.sink(A)
    assert on.residents.place_of(A) == "disk"
    assert same(on.state(A), before)
    on.residents.sink(A)
    assert same(state_in(on.engine, on.residents.place(A)), before)


def play(on: Scene, seed: int) -> tuple[list[np.ndarray], list[HostState]]:
    """The same training on any residents: what passes said, and how the states end."""
    draw = np.random.default_rng(seed)
    names = sorted(MANY)
    for name in names:
        on.residents.admit(name, MANY[name])
    turns = [[names[each] for each in draw.permutation(len(names))[:2]] for _ in range(14)]
    said = []
    for number, (members, later) in enumerate(zip(turns, [*turns[1:], EMPTY], strict=True)):
        slots = on.residents.place_all(members, soon=later)
        on.residents.prefetch([name for name in later if not on.residents.on_device(name)])
        for name, slot in zip(members, slots, strict=True):
            part = batch(number, [4, 3], slot=slot, lora=MANY[name], backward=bool(draw.random() < 0.7))
            said.append(run(on.engine, part)[0].logprobs)
            if name != NEVER_STEPPED and draw.random() < 0.7:
                on.engine.optim_step(slot, adam())
        other = names[int(draw.integers(len(names)))]
        match int(draw.integers(5)):
            case 0:
                on.residents.sink(other)
            case 1:
                on.residents.state(other)
            case 2:
                on.residents.replace(other, on.state(other))
            case _:
                pass
    return said, [on.state(name) for name in names]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("states", [1.0, 2.5, 1000.0])
@pytest.mark.parametrize("late", [False, True])
def test_adapters_that_move_train_as_if_each_had_a_slot_of_its_own(
    lab: Lab, tmp_path: Path, seed: int, dtype: str, states: float, late: bool
) -> None:
    roomy = lab.engine("llama", dtype=dtype, slots=8)
    expected = play(Scene(roomy, tmp_path / "roomy"), seed)

    copies = LateCopies() if late else CopiesAtOnce()
    narrow = lab.engine("llama", dtype=dtype)
    said, states_at_end = play(Scene(narrow, tmp_path, slots=2, states=states, copies=copies), seed)

    assert all(np.array_equal(one, other) for one, other in zip(said, expected[0], strict=True))
    assert all(same(one, other) for one, other in zip(states_at_end, expected[1], strict=True))


def test_a_pass_does_not_compute_in_memory_that_a_copy_behind_it_still_reads(scene: Open) -> None:
    on = scene(slots=2, copies=LateCopies())
    on.admit(A, B)
    on.admit(C, lora=spec(train_mlp=False))
    on.train(A, 1)
    before = state_in(on.engine, on.residents.place(A))
    on.residents.place_all([B])

    on.residents.prefetch([C])  # in A's place
    on.gather(B, 2)

    assert on.residents.on_device(C)
    assert same(on.state(A), before)


def test_a_swap_whose_copy_fails_anywhere_leaves_both_states_whole(scene: Open) -> None:
    copies = FailingCopies()
    on = scene(slots=1, copies=copies)
    on.admit(A, B)
    for adapter in (A, B):
        on.train(adapter, 1)
        on.gather(adapter, 2)
    before = {adapter: on.state(adapter) for adapter in (A, B)}

    for fails_at in range(2 * len(PIECES)):  # B's way out, then A's way in
        on.residents.place(B)
        on.engine.bank.row(0).changed.update(PIECES)
        copies.arm(fails_at)
        with pytest.raises(StorageFailed):
            on.residents.place(A)
        copies.arm(None)

        assert on.residents.on_device(B) == (fails_at < len(PIECES))
        assert all(same(on.state(adapter), before[adapter]) for adapter in (A, B))

    assert same(state_in(on.engine, on.residents.place(A)), before[A])


def test_a_full_or_broken_disk_is_said_and_leaves_the_state_where_it_was(scene: Open) -> None:
    on = scene(slots=1, states=1.0)
    on.admit(A, B, lora=spec(rank=12))
    on.train(A, 1, lora=spec(rank=12))
    on.train(B, 2, lora=spec(rank=12))
    on.gather(B, 3, lora=spec(rank=12))
    before = state_in(on.engine, on.residents.place(B))
    kept = on.spill.rename(on.spill.with_name("kept"))
    on.spill.write_text("a file where the directory should be")

    with pytest.raises(StorageFailed, match="cannot set a training state aside on disk"):
        on.residents.sink(B)
    assert on.residents.place_of(B) in ("host", "device")

    on.spill.unlink()
    kept.rename(on.spill)
    assert same(on.state(B), before)
    assert on.state(A).step == 1


def test_a_state_that_was_loaded_is_kept_even_if_the_disk_refuses_to_make_room(scene: Open) -> None:
    wide = spec(rank=12)
    on = scene(slots=2, states=1.0)
    on.admit(A, B, C, lora=wide)
    for adapter in (A, B):
        on.train(adapter, 1, lora=wide)
        on.gather(adapter, 2, lora=wide)
    expected, second = on.state(A), on.state(B)
    on.residents.replace(C, on.state(A))  # host memory is full, and nothing else holds this
    kept = on.spill.rename(on.spill.with_name("kept"))
    on.spill.write_text("a file where the directory should be")
    with pytest.raises(StorageFailed):
        on.residents.make_room(A)

    on.residents.replace(A, second)

    on.spill.unlink()
    kept.rename(on.spill)
    assert all(same(on.state(adapter), second) for adapter in (A, B))
    assert same(state_in(on.engine, on.residents.place(C)), expected)


def test_a_damaged_file_is_never_trained_on(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A)
    on.train(A, 1)
    before = on.state(A)
    on.residents.sink(A)
    file = on.spill / "a.safetensors"
    good = file.read_bytes()

    flipped = bytes([*good[:-5], good[-5] ^ 1, *good[-4:]])
    for damaged in (good[:-1], good[:40], b"", good + b"x", b"x" + good[1:], flipped):
        file.write_bytes(damaged)
        with pytest.raises(StorageFailed, match=r"is damaged.*load a checkpoint"):
            on.residents.place(A)
        assert on.residents.place_of(A) == "disk"

    file.write_bytes(good)
    assert same(on.state(A), before)


def test_another_state_takes_the_place_of_a_damaged_file(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A)
    on.train(A, 1)
    saved = on.state(A)
    on.residents.sink(A)
    (on.spill / "a.safetensors").write_bytes(b"")

    on.residents.make_room(A)
    on.residents.replace(A, saved)

    assert same(state_in(on.engine, on.residents.place(A)), saved)


# --- only what changed ---------------------------------------------------------------------------------


def test_an_adapter_that_was_only_scored_is_never_written_back(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B)
    on.train(A, 1)
    on.residents.place(B)
    on.score(A, 2)
    on.moves(A)

    on.residents.place(B)

    assert on.moves(A) == []


def test_gradients_alone_are_written_back_alone_and_after_a_step_all_but_them(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B)
    piece = on.engine.bank.layouts.of(LORA).size * 4
    on.train(A, 1)
    on.residents.place(B)
    on.gather(A, 2)
    on.moves(A)

    on.residents.place(B)
    assert on.moves(A) == [Moved(A, piece, loaded=False)]

    on.step(A)
    assert on.moves(A) == [Moved(A, 4 * piece, loaded=True)]
    on.residents.place(B)
    assert on.moves(A) == [Moved(A, 3 * piece, loaded=False)]


def test_what_did_not_change_since_it_was_read_from_disk_is_not_written_there_again(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A)
    on.train(A, 1)
    on.residents.sink(A)
    file = on.spill / "a.safetensors"
    written = file.stat().st_mtime_ns
    on.score(A, 2)

    on.residents.sink(A)

    assert file.stat().st_mtime_ns == written
    on.train(A, 3)
    on.residents.sink(A)
    assert file.stat().st_mtime_ns != written


def test_an_adapter_that_never_changed_takes_no_memory_at_all(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B)
    first = on.score(A, 1)

    on.residents.sink(A)
    on.residents.place(B)

    assert on.residents.place_of(A) == "disk"
    assert list(on.spill.iterdir()) == []
    assert np.array_equal(on.score(A, 1), first)


# --- placing -------------------------------------------------------------------------------------------


def test_a_turn_has_all_its_members_on_the_device_or_is_refused(scene: Open) -> None:
    on = scene(slots=2)
    on.admit(A, B, C)
    on.residents.place(A)

    assert sorted(on.residents.place_all([B, C])) == [0, 1]
    with pytest.raises(OutOfSlots, match="3 adapters of"):
        on.residents.place_all([A, B, C])
    assert not on.residents.on_device(A)


def test_nobody_leaves_the_device_for_one_whose_turn_is_later(scene: Open) -> None:
    on = scene(slots=3)
    far, later = AdapterId("far"), AdapterId("later")
    on.admit(A, B, C, far, later)
    on.residents.place_all([B])
    on.residents.place_all([far])
    on.residents.place_all([A])

    on.residents.prefetch([B, C, later, far])

    assert [on.residents.on_device(each) for each in (A, B, C)] == [True] * 3
    assert [moved.loaded for moved in on.moves(B)] == [True]


def test_prefetching_touches_neither_the_turns_members_nor_what_is_pinned(scene: Open) -> None:
    on = scene(slots=3)
    on.admit(A, B, C)
    on.admit(AdapterId("d"), AdapterId("e"))
    on.residents.place(A)
    on.residents.place(B)
    on.residents.pin(B)
    on.residents.place_all([C])

    on.residents.prefetch([AdapterId("d"), AdapterId("e"), AdapterId("unknown")])

    assert on.residents.on_device(AdapterId("d"))  # in A's place
    assert not on.residents.on_device(AdapterId("e"))
    assert on.residents.on_device(B)
    assert on.residents.on_device(C)


def test_a_state_on_host_or_disk_is_had_without_a_slot(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B)
    on.train(A, 1)
    before = on.state(A)
    on.residents.sink(A)
    on.residents.place(B)
    on.residents.pin(B)

    assert same(on.state(A), before)
    assert on.residents.on_device(B)
    with pytest.raises(OutOfSlots):
        on.residents.place(A)


def test_thousands_are_registered_where_two_fit(scene: Open) -> None:
    on = scene(slots=2, states=1.0)
    many = [AdapterId(str(number)) for number in range(3000)]
    on.admit(*many)
    for adapter in many[::100]:
        on.train(adapter, 1)

    expected = on.state(many[0])
    states = [on.state(adapter) for adapter in many[::100]]

    assert all(same(state, expected) for state in states)
    assert len(on.residents.room().on_device) <= 2


def test_whoever_is_removed_leaves_nothing_behind(scene: Open) -> None:
    on = scene(slots=1)
    on.admit(A, B, C)
    in_use = on.engine.bank.memory.in_use_bytes
    for adapter in (A, B, C):
        on.train(adapter, 1)
    on.residents.sink(A)

    for adapter in (A, B, C):
        on.residents.remove(adapter)

    assert not on.residents.room().on_device
    assert on.engine.bank.memory.in_use_bytes == in_use
    assert list(on.spill.iterdir()) == []
