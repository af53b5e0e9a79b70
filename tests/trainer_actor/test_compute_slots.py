"""An adapter's state is its own: whatever neighbours, slots, evictions and restarts it meets."""

import itertools

import numpy as np
import pytest
import torch
from loractl.bus.errors import CheckpointMismatch, InvalidData, InvalidRequest, NotFinite
from loractl.tests.trainer_actor.compute_lab import (
    VOCAB,
    Lab,
    adam,
    batch,
    begin,
    gradients,
    run,
    spec,
    state_in,
    weights,
)
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.naming import named_parts

THREE = [
    spec(rank=4, seed=1),
    spec(rank=16, seed=2, train_unembed=False),
    spec(rank=1, seed=3, train_mlp=False),
]


def same(one: HostState, other: HostState) -> bool:
    pieces = [
        (getattr(one, name), getattr(other, name)) for name in ("main", "gradients", "exp_avg", "exp_avg_sq")
    ]
    return (one.lora, one.step, one.tokens) == (other.lora, other.step, other.tokens) and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in pieces
    )


def advance(engine: TrainEngine, who: int, slot: int, stage: int) -> None:
    """The who-th adapter's next operation: two forward_backwards and an optim_step per step."""
    step, kind = divmod(stage, 3)
    if kind < 2:
        lengths = [12 + who, 33] if kind else [21]
        part = batch(1000 * who + 10 * step + kind, lengths, slot=slot, lora=THREE[who])
        run(engine, part)
    else:
        params = adam(
            learning_rate=0.01 * (who + 1), weight_decay=0.1 * who, grad_clip_norm=1.0 if who else 0.0
        )
        assert engine.optim_step(slot, params).applied


def trained_alone(engine: TrainEngine, who: int, stages: int) -> HostState:
    begin(engine, 0, THREE[who])
    for stage in range(stages):
        advance(engine, who, 0, stage)
    return state_in(engine, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_three_adapters_interleaved_end_as_each_alone(lab: Lab, dtype: str) -> None:
    engine = lab.engine("qwen3", dtype=dtype)
    alone = [trained_alone(engine, who, 9) for who in range(3)]
    engine.bank.close(0)
    for who in range(3):
        begin(engine, who + 1, THREE[who])

    for stage in range(9):
        for who in range(3):
            advance(engine, who, who + 1, stage)

    assert all(same(state_in(engine, who + 1), alone[who]) for who in range(3))


def test_every_interleaving_of_two_adapters_ends_the_same(lab: Lab) -> None:
    engine = lab.engine("llama")
    alone = [trained_alone(engine, who, 3) for who in range(2)]

    for turns in set(itertools.permutations([0, 0, 0, 1, 1, 1])):
        done = [0, 0]
        for who in range(2):
            begin(engine, who, THREE[who])
        for who in turns:
            advance(engine, who, who, done[who])
            done[who] += 1
        assert all(same(state_in(engine, who), alone[who]) for who in range(2)), turns


def test_eviction_and_return_change_nothing(lab: Lab) -> None:
    engine = lab.engine("qwen3", dtype="bfloat16")
    expected = [trained_alone(engine, who, 8) for who in range(3)]
    host: list[HostState] = []
    for who in range(3):
        begin(engine, 3, THREE[who])
        host.append(state_in(engine, 3))

    for stage in range(8):
        for who in range(3):
            slot = (who + stage) % 4
            engine.bank.close(slot)
            engine.bank.copy_in(slot, host[who])
            advance(engine, who, slot, stage)
            host[who] = state_in(engine, slot)
            engine.bank.close(slot)

    assert all(same(host[who], expected[who]) for who in range(3))


def test_a_used_slot_gives_nothing_to_its_next_adapter(lab: Lab) -> None:
    engine = lab.engine("llama")
    expected = trained_alone(engine, 0, 5)
    engine.bank.close(0)
    begin(engine, 0, spec(rank=16, seed=9))
    run(engine, batch(0, [30], lora=spec(rank=16, seed=9)))
    engine.optim_step(0, adam())
    run(engine, batch(1, [30], lora=spec(rank=16, seed=9)))

    assert same(trained_alone(engine, 0, 5), expected)


def test_a_cleared_slot_holds_nothing_and_says_so(lab: Lab) -> None:
    engine = lab.engine("llama")
    before = engine.bank.memory.in_use_bytes
    begin(engine, 1, spec())
    run(engine, batch(0, [30], slot=1))

    engine.bank.close(1)

    assert engine.bank.memory.in_use_bytes == before
    with pytest.raises(AssertionError, match="slot 1 is free"):
        state_in(engine, 1)


def test_memory_is_taken_again_and_never_more_than_the_most_in_use(lab: Lab) -> None:
    engine = lab.engine("llama")
    memory = engine.bank.memory
    memory.release()
    begin(engine, 0, spec())
    begin(engine, 1, spec(rank=16))
    weights_at = engine.bank.row(0).weights.data_ptr()
    most = memory.in_use_bytes

    for slot in (0, 1):
        engine.bank.close(slot)
    kept = memory.kept_bytes
    begin(engine, 2, spec(seed=5))

    assert kept == most
    assert engine.bank.row(2).weights.data_ptr() == weights_at
    assert memory.in_use_bytes + memory.kept_bytes <= most


def test_gradients_add_up_over_calls(lab: Lab) -> None:
    engine = lab.engine("llama")
    first, second, nothing = (
        batch(0, [30, 9]),
        batch(1, [25]),
        batch(2, [25], weights=np.zeros(25, np.float32)),
    )
    begin(engine, 0, spec())
    for part in (first, second, nothing):
        run(engine, part)
    apart = gradients(engine, 0)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in (first, second, nothing)])
        for name in ("lengths", "tokens", "targets", "weights")
    }

    begin(engine, 0, spec())
    run(engine, batch(0, [1], **arrays))

    assert engine.bank.row(0).tokens == 89
    for name, gradient in gradients(engine, 0).items():
        assert (apart[name] - gradient).abs().max() <= 2e-6 * max(1.0, float(gradient.abs().max())), name


def test_doubling_the_data_doubles_the_gradients(lab: Lab) -> None:
    engine = lab.engine("llama")
    part = batch(0, [30, 9])
    begin(engine, 0, spec())
    (once,) = run(engine, part)
    single = gradients(engine, 0)

    (twice,) = run(engine, part)

    assert once.metrics == twice.metrics
    assert all(torch.equal(double, 2 * single[name]) for name, double in gradients(engine, 0).items())


def test_forward_only_changes_nothing(lab: Lab) -> None:
    engine = lab.engine("llama")
    begin(engine, 0, spec())
    (trained,) = run(engine, batch(0, [30]))
    before = state_in(engine, 0)

    (result,) = run(engine, batch(0, [30], backward=False))
    engine.score(0, [1, 2, 3])

    assert same(state_in(engine, 0), before)
    assert result.logprobs.tobytes() == trained.logprobs.tobytes()
    assert result.metrics == trained.metrics


def test_a_forward_only_part_rides_with_one_that_trains(lab: Lab) -> None:
    engine = lab.engine("llama")
    for slot in (0, 1):
        begin(engine, slot, spec(seed=slot))

    results = run(
        engine,
        batch(0, [30], slot=1, lora=spec(seed=1)),
        batch(1, [30], slot=0, lora=spec(seed=0), backward=False),
    )

    assert len(results) == 2
    assert gradients(engine, 0) == {}
    assert gradients(engine, 1) != {}


def test_a_step_touches_no_bystander(lab: Lab) -> None:
    engine = lab.engine("qwen3")
    for slot in range(3):
        begin(engine, slot, THREE[slot])
        run(engine, batch(slot, [30], slot=slot, lora=THREE[slot]))
    engine.bank.row(2).hold("gradients").mul_(1e6)
    bystanders = [state_in(engine, 0), state_in(engine, 2)]

    outcome = engine.optim_step(1, adam(weight_decay=0.5, grad_clip_norm=0.01))

    assert outcome.grad_norm < 1e4
    assert same(state_in(engine, 0), bystanders[0])
    assert same(state_in(engine, 2), bystanders[1])


def test_padding_stays_exactly_zero(lab: Lab) -> None:
    engine = lab.engine("llama")
    loras = [spec(rank=3, seed=1), spec(rank=1, seed=2, train_mlp=False)]
    for slot, lora in enumerate(loras):
        begin(engine, slot, lora)

    for step in range(40):
        parts = [batch(10 * step + slot, [20, 9], slot=slot, lora=lora) for slot, lora in enumerate(loras)]
        if step % 2:
            run(engine, *parts)
        else:
            for part in parts:
                run(engine, part)
        for slot in range(2):
            engine.optim_step(slot, adam(weight_decay=0.1, grad_clip_norm=float(slot)))

    for slot, lora in enumerate(loras):
        run(engine, batch(0, [20], slot=slot, lora=lora))
        row = engine.bank.row(slot)
        used = torch.zeros(row.layout.size, dtype=torch.bool)
        for _, part in named_parts(row.layout, lora.rank, used):
            part.fill_(True)
        assert int(used.sum()) == engine.parameters(lora)
        for piece in (row.weights, row.main, row.gradients, row.exp_avg, row.exp_avg_sq):
            assert piece is not None
            assert not piece[~used].any()
            assert bool(piece[used].any())


def test_a_seed_gives_the_same_weights_everywhere(lab: Lab) -> None:
    engines = [lab.engine("llama"), lab.engine("llama", slots=9), lab.engine("llama", dtype="bfloat16")]
    found = []
    for slot, engine in enumerate(engines):
        engine.fresh(slot, spec(rank=4, seed=5))
        found.append(weights(engine, slot))
    engines[0].fresh(3, spec(rank=4, seed=6))
    other = weights(engines[0], 3)

    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])
        assert torch.equal(tensor, found[2][name])
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            assert tensor.abs().max() <= tensor.shape[1] ** -0.5
            assert tensor.std() == pytest.approx(tensor.shape[1] ** -0.5 / 3**0.5, rel=0.2)


def test_what_an_adapter_trains_does_not_change_its_other_seeds(lab: Lab) -> None:
    engine = lab.engine("llama")
    engine.fresh(0, spec(seed=5))
    engine.fresh(1, spec(seed=5, train_mlp=False, train_unembed=False))

    everything = weights(engine, 0)

    assert all(torch.equal(tensor, everything[name]) for name, tensor in weights(engine, 1).items())


def test_a_checkpoint_resumes_to_the_same_bits(lab: Lab) -> None:
    engine = lab.engine("qwen3", dtype="bfloat16")
    expected = trained_alone(engine, 1, 9)
    middle = trained_alone(engine, 1, 4)
    tensors, metadata = engine.checkpoint_tensors(middle)

    other = lab.engine("qwen3", dtype="bfloat16", max_rank=32)
    other.bank.copy_in(2, other.state_from_checkpoint(tensors, metadata, THREE[1], with_optimizer=True))
    for stage in range(4, 9):
        advance(other, 1, 2, stage)

    resumed, wanted = other.checkpoint_tensors(state_in(other, 2)), engine.checkpoint_tensors(expected)
    assert resumed[1] == wanted[1]
    assert all(torch.equal(tensor, wanted[0][name]) for name, tensor in resumed[0].items())


def test_a_checkpoint_without_its_optimizer_starts_cold(lab: Lab) -> None:
    engine = lab.engine("llama")
    tensors, metadata = engine.checkpoint_tensors(trained_alone(engine, 0, 4))

    state = engine.state_from_checkpoint(tensors, metadata, THREE[0], with_optimizer=False)
    engine.bank.copy_in(3, state)

    assert (state.step, state.tokens, state.gradients, state.exp_avg) == (0, 0, None, None)
    assert not engine.optim_step(3, adam(weight_decay=0.1)).applied
    assert torch.equal(state_in(engine, 3).main, trained_alone(engine, 0, 3).main)


@pytest.mark.parametrize(
    "damage", ["rank", "targets", "missing", "extra", "shape", "nan", "base", "step", "piece"]
)
def test_a_checkpoint_that_does_not_fit_says_why(lab: Lab, damage: str) -> None:
    engine = lab.engine("llama")
    tensors, metadata = engine.checkpoint_tensors(trained_alone(engine, 0, 3))
    lora = THREE[0]
    name = next(iter(tensors))
    match damage:
        case "rank":
            lora = spec(rank=5)
        case "targets":
            lora = spec(train_mlp=False)
        case "missing":
            del tensors[name]
        case "extra":
            tensors[f"{name}.more"] = tensors[name]
        case "shape":
            tensors[name] = tensors[name][:-1]
        case "nan":
            tensors[name].fill_(torch.nan)
        case "base":
            metadata["base_model"] = "another"
        case "step":
            metadata["step"] = "0"
        case "piece":
            tensors["secrets/x"] = tensors[name]

    with pytest.raises(CheckpointMismatch) as caught:
        engine.state_from_checkpoint(tensors, metadata, lora, with_optimizer=True)

    words = {"rank": "rank", "targets": "train_mlp", "base": "another", "step": "step 0", "piece": "secrets"}
    assert words.get(damage, "lora_") in caught.value.message


def test_state_bytes_are_exact(lab: Lab) -> None:
    engine = lab.engine("llama")
    for who, lora in enumerate(THREE):
        state = trained_alone(engine, who, 4)
        assert state.gradients is not None
        assert state.size_bytes == engine.state_bytes(lora)


def test_scores_are_the_logprobs_of_the_next_tokens(lab: Lab) -> None:
    engine = lab.engine("qwen2")
    begin(engine, 0, spec())
    tokens = np.arange(40) % VOCAB

    scores = engine.score(0, tokens)

    (result,) = run(engine, batch(0, [39], tokens=tokens[:-1], targets=tokens[1:]))
    assert scores.tobytes() == result.logprobs.tobytes()
    for bad in ([1], [1, VOCAB], list(range(300))):
        with pytest.raises(InvalidData):
            engine.score(0, bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"rank": 17},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"train_attn": False, "train_mlp": False, "train_unembed": False},
    ],
    ids=str,
)
def test_adapters_that_cannot_be_are_refused(lab: Lab, changes: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        lab.engine("llama").check_lora(spec(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": np.zeros(0, np.int64)},
        {"lengths": np.array([0, 9])},
        {"lengths": np.array([10])},
        {"lengths": np.array([-1, 10])},
        {"lengths": np.array([300])},
        {"tokens": np.full(9, VOCAB)},
        {"targets": np.full(9, -1)},
        {"targets": np.zeros(8, np.int64)},
        {"weights": np.full(9, np.nan, np.float32)},
        {"weights": np.ones(10, np.float32)},
        {
            "loss": "ppo",
            "advantages": np.full(9, np.inf, np.float32),
            "old_logprobs": np.zeros(9, np.float32),
        },
        {"loss": "ppo", "advantages": np.zeros(0, np.float32)},
        {"advantages": np.zeros(9, np.float32)},
    ],
    ids=str,
)
def test_data_that_no_model_takes_is_refused(lab: Lab, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidData):
        lab.engine("llama").check_part(batch(0, [9], **changes))


def test_a_step_that_would_ruin_an_adapter_is_refused(lab: Lab) -> None:
    engine = lab.engine("llama")
    begin(engine, 0, spec())
    run(engine, batch(0, [30]))
    engine.bank.row(0).hold("gradients")[5] = torch.inf
    before = state_in(engine, 0)

    with pytest.raises(NotFinite):
        engine.optim_step(0, adam())

    assert same(state_in(engine, 0), before)
