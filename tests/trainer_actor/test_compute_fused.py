"""Several adapters in a pass compute, bit for bit on a CPU in float32, what each computes alone."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.errors import NotFinite
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.compute_lab import FAMILIES, VOCAB, Lab, batch, begin, run, spec, state_in
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PartResult, PassPart

LORAS = [
    spec(rank=4, seed=1),
    spec(rank=16, seed=2, train_mlp=False),
    spec(rank=1, seed=3, train_attn=False, train_unembed=False),
    spec(rank=8, seed=4, train_mlp=False, train_attn=False),
]


def many(seed: int, lengths: Sequence[int], /, **changes: object) -> PassPart:
    """Several weighted targets a position."""
    draw = np.random.default_rng(seed)
    shape = (sum(lengths), 3)
    weights = (draw.normal(0, 1, shape) * (draw.random(shape) > 0.5)).astype(np.float32)
    return batch(seed, lengths, targets=draw.integers(0, VOCAB, shape), weights=weights, **changes)


# Ragged, of all losses, some of one position; ranks and targets mixed.
PARTS = [
    batch(9, [30, 6], slot=3, lora=LORAS[0]),
    batch(5, [1], slot=0, lora=LORAS[1], loss="ppo"),
    batch(7, [17, 17, 40], slot=1, lora=LORAS[2], loss="importance_sampling"),
    batch(8, [33, 5, 5], slot=2, lora=LORAS[3], loss="gspo"),
]
OTHERS = [
    many(1, [3, 18], slot=0, lora=LORAS[3]),
    batch(2, [7], slot=1, lora=LORAS[0], loss="dro"),
    batch(3, [64], slot=2, lora=LORAS[1], loss="cispo", backward=False),
    batch(4, [2, 2, 2], slot=3, lora=LORAS[2], loss="stable_reinforce"),
]
TINY = [batch(slot, [slot + 1], slot=slot, lora=LORAS[slot]) for slot in range(4)]


def started(engine: TrainEngine, parts: Sequence[PassPart]) -> None:
    for part in parts:
        begin(engine, part.slot, part.lora)


def ends(engine: TrainEngine, parts: Sequence[PassPart]) -> list[HostState]:
    return [state_in(engine, part.slot) for part in parts]


def assert_same(
    results: Sequence[PartResult],
    states: Sequence[HostState],
    wanted: Sequence[PartResult],
    as_in: Sequence[HostState],
) -> None:
    for result, expected in zip(results, wanted, strict=True):
        assert result.logprobs.tobytes() == expected.logprobs.tobytes()
        assert result.loss_terms.tobytes() == expected.loss_terms.tobytes()
        assert result.metrics == expected.metrics
    for state, expected_state in zip(states, as_in, strict=True):
        assert_same_gradients(state, expected_state)


def assert_same_gradients(state: HostState, expected: HostState) -> None:
    assert state.tokens == expected.tokens
    assert (state.gradients is None) == (expected.gradients is None)
    if state.gradients is not None and expected.gradients is not None:
        assert torch.equal(state.gradients, expected.gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", [PARTS, OTHERS, TINY], ids=["ragged", "more losses", "tiny"])
def test_a_shared_pass_gives_each_adapter_the_bits_it_gets_alone(
    lab: Lab, family: str, parts: list[PassPart]
) -> None:
    engine = lab.engine(family)
    started(engine, parts)
    alone = [run(engine, part)[0] for part in parts]
    states = ends(engine, parts)

    started(engine, parts)
    together = run(engine, *parts)

    assert_same(together, ends(engine, parts), alone, states)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 50), min_size=1, max_size=4),
            st.sampled_from(["cross_entropy", "gspo", "ppo"]),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_any_lengths_share_a_pass_without_changing_a_bit(
    lab: Lab, loads: list[tuple[list[int], str]]
) -> None:
    engine = lab.engine("smollm2")
    parts = [
        batch(slot, lengths, slot=slot, lora=LORAS[slot], loss=loss)
        for slot, (lengths, loss) in enumerate(loads)
    ]
    started(engine, parts)
    alone = [run(engine, part)[0] for part in parts]
    states = ends(engine, parts)

    started(engine, parts)
    together = run(engine, *parts)

    assert_same(together, ends(engine, parts), alone, states)


@pytest.mark.parametrize("ruined", range(4))
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_reach_no_other_adapter(lab: Lab, ruined: int, value: float) -> None:
    engine = lab.engine("qwen2")
    started(engine, PARTS)
    expected = run(engine, *PARTS)
    states = ends(engine, PARTS)
    started(engine, PARTS)
    weights_N = engine.bank.row(PARTS[ruined].slot).weights
    weights_N.masked_fill_(weights_N != 0, value)

    outcomes = engine.forward_backward(PARTS)

    assert isinstance(outcomes[ruined], NotFinite)
    assert engine.bank.row(PARTS[ruined].slot).gradients is None
    others = [index for index in range(4) if index != ruined]
    assert_same(
        [outcome for outcome in outcomes if isinstance(outcome, PartResult)],
        [state_in(engine, PARTS[index].slot) for index in others],
        [expected[index] for index in others],
        [states[index] for index in others],
    )


def test_what_memory_held_before_does_not_change_a_bit(lab: Lab) -> None:
    engine = lab.engine("llama")
    memory = engine.bank.memory
    memory.release()
    started(engine, PARTS)
    expected, states = run(engine, *PARTS), ends(engine, PARTS)
    for slot in range(4):
        engine.bank.close(slot)

    for views in memory._kept.values():
        views.row_N.fill_(torch.nan)
    started(engine, PARTS)

    assert_same(run(engine, *PARTS), ends(engine, PARTS), expected, states)


@pytest.mark.parametrize("lora", [*LORAS, spec(rank=8, seed=9)], ids=str)
def test_several_runs_of_one_adapter_in_a_pass_equal_one_after_the_other(lab: Lab, lora: LoraSpec) -> None:
    engine = lab.engine("qwen3")
    parts = [
        batch(1, [20, 3], lora=lora),
        batch(2, [9], lora=lora, loss="ppo"),
        batch(3, [31], lora=lora, backward=False),
        many(4, [12], lora=lora),
    ]
    begin(engine, 0, lora)
    alone = [run(engine, part)[0] for part in parts]
    states = ends(engine, parts)

    begin(engine, 0, lora)
    runs = [engine.begin(part) for part in parts]
    engine.run(runs)

    outcomes = [each.outcome for each in runs]
    results = [outcome for outcome in outcomes if isinstance(outcome, PartResult)]
    assert_same(results, ends(engine, parts), alone, states)


def test_adapters_share_a_pass_in_bfloat16_within_its_rounding(lab: Lab) -> None:
    engine = lab.engine("qwen3", dtype="bfloat16")
    started(engine, PARTS)
    alone = [run(engine, part)[0] for part in PARTS]
    states = ends(engine, PARTS)

    started(engine, PARTS)
    together = run(engine, *PARTS)

    for result, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(result.logprobs, expected.logprobs, rtol=0, atol=0.05)
    for state, other in zip(ends(engine, PARTS), states, strict=True):
        assert state.gradients is not None
        assert other.gradients is not None
        assert (state.gradients - other.gradients).norm() < 0.05 * other.gradients.norm()


def test_what_others_train_changes_no_bit_where_sums_are_long_either(lab: Lab) -> None:
    engine = lab.engine("wide", dtype="float32", pass_tokens=512)
    mine = batch(0, [20, 30], slot=1, lora=LORAS[1])
    other = batch(1, [60, 100], slot=2, lora=LORAS[2])
    started(engine, [mine, other])
    (expected,) = run(engine, mine)
    wanted = state_in(engine, 1)
    started(engine, [mine, other])

    result, _ = run(engine, mine, other)

    assert_same([result], [state_in(engine, 1)], [expected], [wanted])
