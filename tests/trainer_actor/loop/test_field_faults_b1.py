"""Faults of other systems that mixed up tenants' gradients or optimizers; each test's name has its number.

`test_field_faults.py` says which tests elsewhere prove the others.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    CheckpointSaved,
    DeleteAdapter,
    Done,
    ForwardBackward,
    LoadCheckpoint,
    OptimStep,
    PassResult,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
)
from loractl.tests.trainer_actor.loop.harness import VOCAB, Adapter, Office, checked, create, pass_over, same
from safetensors import safe_open

Serve = Callable[..., Office]
State = Mapping[str, np.ndarray]


def state(adapter: Adapter) -> State:
    """Weights, gradients, moments and counters, as a checkpoint holds them."""
    name = f"seen-{adapter.seq}"
    adapter.run(SaveCheckpoint, CheckpointSaved, name=name)
    [file] = adapter.office.layout.checkpoint(adapter.id, name).glob("*/state.safetensors")
    with safe_open(file, framework="np") as opened:
        counters = {key: np.array(int(opened.metadata()[key])) for key in ("step", "tokens")}
        return {**counters, **{key: opened.get_tensor(key) for key in opened.keys()}}  # noqa: SIM118


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(same([one[name]], [other[name]]) for name in one)


def pieces(of: State, piece: str) -> State:
    return {name: value for name, value in of.items() if name.startswith(piece)}


def data(lengths: list[int], seed: int = 0, **fields: object) -> Callable[..., ForwardBackward]:
    """A forward_backward over random datums of these lengths."""
    draw = np.random.default_rng([seed, *lengths])
    total = sum(lengths)
    given = {
        "lengths": np.array(lengths),
        "tokens": draw.integers(0, VOCAB, total),
        "targets": draw.integers(0, VOCAB, total),
        "weights": draw.random(total).astype(np.float32),
    }
    return partial(pass_over, 0, **{**given, **fields})


def rewarded(total: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What losses other than cross_entropy need."""
    draw = np.random.default_rng(seed)
    return {
        "old_logprobs": draw.normal(-5, 0.5, total).astype(np.float32),
        "advantages": draw.normal(0, 1, total).astype(np.float32),
    }


def test_b1_05_weight_decay_of_one_adapter_shrinks_no_other(serve: Serve) -> None:
    office = serve("trainer.slots=3")
    decayed, fresh, trained = (create(office, name) for name in ("decayed", "fresh", "trained"))
    trained.forward_backward(1)
    trained.step()
    trained.forward_backward(2)
    before = state(fresh), state(trained)

    for data_ in range(10):
        decayed.forward_backward(data_)
        decayed.step(rate=0.1, weight_decay=0.1)

    assert equal(state(fresh), before[0])
    assert equal(state(trained), before[1])


def test_b1_07_clipping_sees_and_scales_the_own_gradients_alone(serve: Serve) -> None:
    office = serve("trainer.slots=2")
    solo = create(office, "solo")
    solo.forward_backward(1)
    alone = solo.step(grad_clip_norm=1e-3)
    huge, clipped = create(office, "huge"), create(office, "clipped")
    checked(huge.run(data([9], weights=np.full(9, 1e6, np.float32)), PassResult), PassResult)
    before = state(huge)

    clipped.forward_backward(1)
    norm = clipped.step(grad_clip_norm=1e-3)

    assert norm.grad_norm == alone.grad_norm > 1e-3
    assert equal(state(huge), before)
    assert huge.step().grad_norm > 1e3 * norm.grad_norm


def test_b1_08_main_weights_stay_in_float32_whoever_comes_and_goes(serve: Serve) -> None:
    office = serve("trainer.slots=2", "model.dtype=bfloat16")
    bystander = create(office, "bystander")
    for seed in range(3):
        bystander.forward_backward(seed)
        bystander.step(rate=1e-3)
    before = state(bystander)
    main = np.concatenate([value.ravel() for value in pieces(before, "main").values()])
    assert not np.array_equal(main, torch.tensor(main).bfloat16().float().numpy())

    for round_ in range(3):
        others = [create(office, f"other-{round_}-{number}", rank=2 + number) for number in range(3)]
        for other in others:
            other.forward_backward(1)
            other.step()
        for other in others:
            office.ask(DeleteAdapter(adapter=other.id), Done)

    assert equal(state(bystander), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_b1_09_the_step_after_a_load_begins_from_the_loaded_weights(serve: Serve, dtype: str) -> None:
    office = serve(f"model.dtype={dtype}")
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    adapter.step()
    adapter.run(SaveCheckpoint, CheckpointSaved, name="loaded")
    loaded = state(adapter)
    for seed in range(3):
        adapter.forward_backward(seed)
        adapter.step(rate=0.1)

    load = partial(LoadCheckpoint, source=adapter.id, name="loaded", with_optimizer=False)
    adapter.run(load, StateLoaded)  # type: ignore[arg-type]
    adapter.run(data([7], weights=np.zeros(7, np.float32)), PassResult)
    step = adapter.step(rate=0.1)

    assert (step.applied, step.grad_norm) == (True, 0.0)
    assert equal(pieces(state(adapter), "main"), pieces(loaded, "main"))


def test_b1_10_recomputed_activations_give_the_same_gradients(serve: Serve) -> None:
    found = []
    for recompute in ("false", "true"):
        office = serve(f"trainer.recompute={recompute}")
        adapters = [create(office, name, rank=rank) for name, rank in (("a", 4), ("b", 8))]
        requests = [
            office.send(data([20, 9], seed)(**adapter.next())) for seed in range(3) for adapter in adapters
        ]
        for request in requests:
            checked(office.wait(request), PassResult)
        found.append([state(adapter) for adapter in adapters])

    for kept, recomputed in zip(*found, strict=True):
        assert pieces(kept, "gradients")
        assert equal(kept, recomputed)


def test_b1_12_different_losses_in_one_crowd_are_each_their_own(serve: Serve) -> None:
    losses = [
        data([12, 5]),
        data([12, 5], loss="ppo", **rewarded(17, 1)),
        data([12, 5], loss="importance_sampling", **rewarded(17, 2)),
        data([12, 5], loss="gspo", **rewarded(17, 3)),
    ]
    assert_crowd_is_each_alone(serve, losses)


def test_b1_13_different_settings_of_one_loss_in_one_crowd_are_each_their_own(serve: Serve) -> None:
    far = {"loss": "ppo", **rewarded(17, 1)}
    settings: list[Mapping[str, float]] = [
        {},
        {"clip_high_threshold": 1.0},
        {"clip_low_threshold": 0.0, "clip_high_threshold": 100.0},
        {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0},
    ]
    found = assert_crowd_is_each_alone(serve, [data([12, 5], loss_config=each, **far) for each in settings])
    assert len({result.metrics["clipped:mean"] for result in found}) > 1


def assert_crowd_is_each_alone(
    serve: Serve, operations: list[Callable[..., ForwardBackward]]
) -> list[PassResult]:
    """Send them at one time, of an adapter each and of one adapter; all must be as one by one."""
    office = serve(f"trainer.slots={len(operations) + 1}")
    results, states = [], []
    for number, operation in enumerate(operations):
        solo = create(office, f"solo-{number}", seed=number)
        results.append(solo.run(operation, PassResult))  # type: ignore[arg-type]
        states.append(state(solo))

    crowd = [create(office, f"crowd-{number}", seed=number) for number in range(len(operations))]
    requests = [
        office.send(operation(**each.next())) for each, operation in zip(crowd, operations, strict=True)
    ]
    answers = [checked(office.wait(request), PassResult) for request in requests]

    for answer, result in zip(answers, results, strict=True):
        assert same([answer.logprobs, answer.loss_terms], [result.logprobs, result.loss_terms])
        assert answer.metrics == result.metrics
    for each, expected in zip(crowd, states, strict=True):
        assert equal(state(each), expected)
    return answers


def test_b1_15_what_one_tenant_breaks_in_a_crowd_breaks_nobody_elses(serve: Serve) -> None:
    office = serve("trainer.slots=4")
    solo = create(office, "solo")
    expected = solo.run(data([20, 3]), PassResult)  # type: ignore[arg-type]
    expected_state = state(solo)
    office.ask(DeleteAdapter(adapter=solo.id), Done)
    good = create(office, "solo")
    broken = [create(office, "broken", tenant=TenantId(f"careless-{number}")) for number in range(3)]
    faults = [
        data(
            [6], loss="importance_sampling", **{**rewarded(6), "old_logprobs": np.full(6, -300, np.float32)}
        ),
        data([6], weights=np.full(6, 3e38, np.float32)),
        data([6], tokens=np.full(6, VOCAB)),
    ]

    requests = [
        office.send(fault(**each.next()), each.tenant) for fault, each in zip(faults, broken, strict=True)
    ]
    found = checked(office.wait(office.send(data([20, 3])(**good.next()))), PassResult)
    codes = [office.wait(request).code for request in requests]  # type: ignore[attr-defined]

    assert codes == ["not_finite", "not_finite", "invalid_data"]
    assert same([found.logprobs], [expected.logprobs])
    assert equal(state(good), expected_state)
    for each in broken:
        step = office.ask(OptimStep(learning_rate=0.1, **each.next()), StepResult, each.tenant)  # type: ignore[arg-type]
        assert (step.applied, step.step, step.tokens) == (False, 0, 0)


def test_b1_16_an_operation_that_fails_in_its_last_piece_leaves_no_gradient_of_the_others(
    serve: Serve,
) -> None:
    office = serve("trainer.pass_tokens=16")
    adapter = create(office, "poet")
    adapter.run(data([16, 9]), PassResult)  # type: ignore[arg-type]
    before = state(adapter)
    weights = np.full(52, 0.5, np.float32)
    weights[-4:] = 3e38

    error = adapter.refused(data([16, 16, 16, 4], weights=weights))

    assert error.code == "not_finite"
    assert equal(state(adapter), before)
    assert adapter.step().tokens == 25


def test_b1_17_nothing_that_is_computed_draws_random_numbers(serve: Serve) -> None:
    """There is no dropout; were there any, neighbours would change what it leaves out."""
    found = []
    for seed, neighbours in ((0, 0), (1, 3)):
        torch.manual_seed(seed)
        office = serve("trainer.slots=2")
        others = [create(office, f"other-{number}") for number in range(neighbours)]
        adapter = create(office, "poet")
        drawn = torch.get_rng_state()
        for number in range(3):
            for other in others:
                other.forward_backward(number)
            adapter.forward_backward(number)
            adapter.step()
        assert torch.equal(torch.get_rng_state(), drawn)
        found.append(state(adapter))

    assert equal(*found)
