"""Operations cut into pieces: whatever runs between them, given up or out of memory, they end the same."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from loractl.bus.errors import InvalidData, NotFinite, OutOfSlots
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, run, spec, state_in
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.part_run import PartRun
from loractl.trainer_actor.passes import PartResult
from torch.utils._python_dispatch import TorchDispatchMode

LORAS = [spec(rank=4, seed=1), spec(rank=12, seed=2, train_mlp=False), spec(rank=8, seed=3)]
PARTS = [
    batch(0, [20, 9, 30, 4, 11, 40], slot=0, lora=LORAS[0]),
    batch(1, [25, 25, 3], slot=1, lora=LORAS[1], loss="ppo"),
    batch(2, [30, 16, 8], slot=2, lora=LORAS[2], loss="gspo"),
]
CUTS = [(29, 30, 15, 40), (25, 28), (30, 24)]


class NoRoom(TorchDispatchMode):
    """Memory runs out behind the first `after` results [positions, 1, …] of at least so many positions."""

    def __init__(self, rows: int, after: int) -> None:
        super().__init__()
        self.rows, self.left, self.times = rows, after, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        shape = result.shape if isinstance(result, torch.Tensor) else ()
        if len(shape) == 3 and shape[1] == 1 and shape[0] >= self.rows:
            self.left -= 1
            if self.left < 0:
                self.times += 1
                raise torch.OutOfMemoryError
        return result


@pytest.fixture
def engine(lab: Lab) -> TrainEngine:
    engine = lab.engine("llama", pass_tokens=32)
    for part in PARTS:
        begin(engine, part.slot, part.lora)
    return engine


def ends(engine: TrainEngine) -> list[HostState]:
    return [state_in(engine, part.slot) for part in PARTS]


def alone(engine: TrainEngine) -> tuple[list[PartResult], list[HostState]]:
    for part in PARTS:
        begin(engine, part.slot, part.lora)
    results = [run(engine, part)[0] for part in PARTS]
    states = ends(engine)
    for part in PARTS:
        begin(engine, part.slot, part.lora)
    return results, states


def finish(engine: TrainEngine, runs: Sequence[PartRun]) -> None:
    for each in runs:
        while each.outcome is None:
            engine.run([each])


def assert_ended_as(
    engine: TrainEngine, runs: Sequence[PartRun], expected: tuple[list[PartResult], list[HostState]]
) -> None:
    for each, result in zip(runs, expected[0], strict=True):
        assert isinstance(each.outcome, PartResult)
        assert each.outcome.logprobs.tobytes() == result.logprobs.tobytes()
        assert each.outcome.metrics == result.metrics
    for state, other in zip(ends(engine), expected[1], strict=True):
        assert state.gradients is not None
        assert other.gradients is not None
        assert torch.equal(state.gradients, other.gradients)
        assert state.tokens == other.tokens


def test_pieces_are_whole_datums_within_a_pass_and_longer_ones_alone(engine: TrainEngine) -> None:
    runs = [engine.begin(part) for part in PARTS]

    assert [each.pieces for each in runs] == CUTS
    assert [each.left for each in runs] == [len(cut) for cut in CUTS]
    engine.run(runs)
    assert [each.left for each in runs] == [len(cut) - 1 for cut in CUTS]
    assert all(each.outcome is None for each in runs)
    finish(engine, runs)
    assert all(each.left == 0 for each in runs)


@pytest.mark.parametrize(
    "turns",
    [
        [(0, 1, 2), (0, 1, 2), (0,), (0,)],
        [(0,), (1, 2), (0,), (2, 1), (0,), (0,)],
        [(2,), (0,), (0, 1), (0,), (1, 0), (2,)],
    ],
    ids=str,
)
def test_pieces_between_those_of_others_end_as_alone(
    engine: TrainEngine, turns: list[tuple[int, ...]]
) -> None:
    expected = alone(engine)

    runs = [engine.begin(part) for part in PARTS]
    for turn in turns:
        engine.run([runs[index] for index in turn])

    assert_ended_as(engine, runs, expected)


def test_steps_of_others_between_the_pieces_change_nothing(engine: TrainEngine) -> None:
    expected = alone(engine)
    run(engine, PARTS[1])

    long = engine.begin(PARTS[0])
    engine.run([long])
    engine.optim_step(1, adam(learning_rate=0.1))
    engine.bank.close(1)
    finish(engine, [long])

    state = state_in(engine, 0)
    assert isinstance(long.outcome, PartResult)
    assert long.outcome.logprobs.tobytes() == expected[0][0].logprobs.tobytes()
    assert state.gradients is not None
    assert expected[1][0].gradients is not None
    assert torch.equal(state.gradients, expected[1][0].gradients)


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_run_that_is_given_up_leaves_no_trace(engine: TrainEngine, passes: int) -> None:
    run(engine, batch(7, [12], slot=0, lora=LORAS[0]))
    before, in_use = state_in(engine, 0), engine.bank.memory.in_use_bytes
    given_up = engine.begin(PARTS[0])
    for _ in range(passes):
        engine.run([given_up])

    engine.abandon(given_up)

    after = state_in(engine, 0)
    assert engine.bank.memory.in_use_bytes == in_use
    assert given_up.outcome is None
    assert (after.step, after.tokens) == (before.step, before.tokens)
    assert torch.equal(after.main, before.main)
    assert after.gradients is not None
    assert before.gradients is not None
    assert torch.equal(after.gradients, before.gradients)
    assert engine.bank.row(0).changed == {"gradients"}


def test_a_run_that_fails_in_its_last_piece_leaves_no_trace(engine: TrainEngine) -> None:
    far = np.where(np.arange(114) == 113, -300.0, -6.0).astype(np.float32)
    part = batch(0, [20, 9, 30, 4, 11, 40], lora=LORAS[0], loss="importance_sampling", old_logprobs=far)
    part = replace(part, weights=np.ones_like(part.weights))
    bad = engine.begin(part)

    finish(engine, [bad])

    assert isinstance(bad.outcome, NotFinite)
    assert engine.bank.row(0).gradients is None
    assert engine.bank.row(0).tokens == 0


def test_an_operation_whose_arrays_find_no_room_is_refused_and_leaves_no_trace(engine: TrainEngine) -> None:
    before, in_use = state_in(engine, 0), engine.bank.memory.in_use_bytes
    other = engine.begin(PARTS[1])
    # More than any machine can address, of which numpy stores one number.
    endless = replace(PARTS[0], tokens=np.broadcast_to(np.int64(1), 1 << 45))

    with pytest.raises(OutOfSlots, match=r"no room for the \d+ positions of this operation"):
        engine.begin(endless)

    finish(engine, [other])
    after = state_in(engine, 0)
    assert isinstance(other.outcome, PartResult)
    assert torch.equal(after.main, before.main)
    assert after.gradients is None
    assert engine.begin(PARTS[0]).left == len(CUTS[0])
    engine.bank.row(1).drop("gradients")
    engine.bank.memory.release()
    assert engine.bank.memory.in_use_bytes == in_use


@pytest.mark.parametrize("after", [0, 9, 40, 70])
def test_a_pass_without_room_for_all_runs_them_one_by_one_to_the_same_end(
    engine: TrainEngine, after: int
) -> None:
    expected = alone(engine)
    runs = [engine.begin(part) for part in PARTS]
    engine.run(runs)

    with NoRoom(rows=45, after=after) as memory:
        while waiting := [each for each in runs if each.outcome is None]:
            engine.run(waiting)

    assert memory.times == 1
    assert_ended_as(engine, runs, expected)


def test_runs_of_one_slot_that_begin_anew_for_want_of_room_end_in_their_order(engine: TrainEngine) -> None:
    short = batch(5, [8], slot=0, lora=LORAS[0])
    expected = [run(engine, part)[0] for part in (PARTS[0], short)]
    gathered = state_in(engine, 0).gradients
    begin(engine, 0, LORAS[0])
    first = engine.begin(PARTS[0])
    while first.left > 1:
        engine.run([first])
    second = engine.begin(short)

    with NoRoom(rows=45, after=9) as memory:
        while first.left:
            engine.run([first, second] if first.left == 1 else [first])
            assert first.outcome is not None or second.outcome is None
    finish(engine, [second])

    assert memory.times == 1
    for each, result in zip((first, second), expected, strict=True):
        assert isinstance(each.outcome, PartResult)
        assert each.outcome.logprobs.tobytes() == result.logprobs.tobytes()
    assert gathered is not None
    ended = state_in(engine, 0).gradients
    assert ended is not None
    assert torch.equal(ended, gathered)


def test_a_piece_without_room_fails_by_name_and_leaves_no_trace(engine: TrainEngine) -> None:
    in_use = engine.bank.memory.in_use_bytes
    first = engine.begin(PARTS[0])
    second = engine.begin(PARTS[1])

    with NoRoom(rows=40, after=30):
        finish(engine, [first, second])

    assert isinstance(first.outcome, InvalidData)
    assert "40 positions do not fit" in first.outcome.message
    assert engine.bank.row(0).gradients is None
    assert isinstance(second.outcome, PartResult)
    assert engine.bank.memory.in_use_bytes == in_use + 4 * engine.bank.row(1).layout.size


def test_what_changed_since_the_host_copy_is_kept_per_piece(engine: TrainEngine) -> None:
    row = engine.bank.row(0)
    engine.fresh(3, LORAS[0])
    assert engine.bank.row(3).changed == {"main"}
    assert row.changed == set()

    run(engine, replace(PARTS[0], backward=False))
    assert row.changed == set()
    run(engine, PARTS[0])
    assert row.changed == {"gradients"}
    engine.optim_step(0, adam())
    assert row.changed == {"main", "exp_avg", "exp_avg_sq"}
    assert row.gradients is None
    engine.bank.copy_in(0, state_in(engine, 0))
    assert engine.bank.row(0).changed == set()


def test_steps_of_several_slots_are_answered_each(engine: TrainEngine) -> None:
    run(engine, PARTS[0])
    run(engine, PARTS[2])
    engine.bank.row(2).hold("gradients")[3] = torch.nan

    stepped, nothing, failed = engine.optim_steps([(0, adam()), (1, adam()), (2, adam())])

    assert not isinstance(stepped, Exception)
    assert stepped.applied
    assert not isinstance(nothing, Exception)
    assert not nothing.applied
    assert isinstance(failed, NotFinite)
    assert engine.bank.row(2).step == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_row_and_of_a_state_are_exact(lab: Lab, dtype: str) -> None:
    engine = lab.engine("llama", dtype=dtype)
    for lora in (*LORAS, spec(rank=1, train_attn=False, train_unembed=False)):
        engine.bank.close(0)
        memory = engine.bank.memory
        before = memory.in_use_bytes
        begin(engine, 0, lora)
        for _ in range(2):
            run(engine, batch(0, [20], lora=lora))
            engine.optim_step(0, adam())
        run(engine, batch(1, [20], lora=lora))
        begun = engine.begin(batch(2, [9], lora=lora))
        begun.member()

        assert memory.in_use_bytes - before == engine.row_bytes(lora)
        assert state_in(engine, 0).size_bytes == engine.state_bytes(lora)
        engine.abandon(begun)


def test_measuring_leaves_no_trace(engine: TrainEngine) -> None:
    in_use = engine.bank.memory.in_use_bytes

    costs = engine.measure()

    assert costs.pass_ms > 0
    assert costs.token_ms > 0
    assert costs.copy_bytes_per_ms > 1000
    assert engine.bank.memory.in_use_bytes == in_use
