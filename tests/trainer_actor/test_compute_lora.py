"""Adapters compute what Hugging Face PEFT computes, alone or several in a pass."""

import numpy as np
import pytest
import torch
from loractl.bus.errors import NotFinite
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.compute_lab import Lab, batch, begin, gradients, run, spec, weights
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PartResult, PassPart

MIXED = [
    spec(rank=4, seed=1),
    spec(rank=16, seed=2, train_mlp=False),
    spec(rank=1, seed=3, train_attn=False, train_unembed=False),
    spec(rank=8, seed=4, train_mlp=False, train_attn=False),
]


def peft_gradients(lab: Lab, family: str, engine: TrainEngine, part: PassPart) -> dict[str, torch.Tensor]:
    """Loss and gradients of the slot's adapter in Hugging Face PEFT, by our names."""
    model = lab.peft(family, part.lora)
    values = weights(engine, part.slot)
    adapter = {
        name.replace(".default", ""): each for name, each in model.named_parameters() if "lora_" in name
    }
    assert adapter.keys() == values.keys()
    for name, parameter in adapter.items():
        parameter.data.copy_(values[name])
    lengths = part.lengths.tolist()
    datums = zip(
        *(torch.tensor(array).split(lengths) for array in (part.tokens, part.targets, part.weights)),
        strict=True,
    )
    loss = torch.zeros(())
    for tokens, targets, weight in datums:
        logprobs = model(tokens[None]).logits[0].log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        loss = loss - (weight * logprobs).sum()
    loss.backward()
    return {"loss": loss.detach(), **{name: each.grad for name, each in adapter.items()}}


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", spec(rank=4)),
        ("llama3", spec(rank=3, alpha=7.0)),
        ("smollm2", spec(rank=16)),
        ("qwen2", spec(rank=8, train_unembed=False)),
        ("qwen3", spec(rank=8, train_mlp=False)),
        ("qwen3-untied", spec(rank=8, train_attn=False)),
        ("qwen3", spec(rank=4, train_attn=False, train_mlp=False)),
    ],
    ids=str,
)
def test_loss_and_every_gradient_are_pefts(lab: Lab, family: str, lora: LoraSpec) -> None:
    engine = lab.engine(family)
    begin(engine, 2, lora)
    part = batch(5, [11, 64, 3, 40], slot=2, lora=lora)

    (result,) = run(engine, part)

    expected = peft_gradients(lab, family, engine, part)
    found = gradients(engine, 2)
    assert result.metrics["loss:sum"] == pytest.approx(float(expected.pop("loss")), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * gradient.abs().max(), name


def alone(
    engine: TrainEngine, parts: list[PassPart]
) -> tuple[list[PartResult], list[dict[str, torch.Tensor]]]:
    for part in parts:
        begin(engine, part.slot, part.lora)
    return [run(engine, part)[0] for part in parts], [gradients(engine, part.slot) for part in parts]


def together(
    engine: TrainEngine, parts: list[PassPart]
) -> tuple[list[PartResult], list[dict[str, torch.Tensor]]]:
    for part in parts:
        begin(engine, part.slot, part.lora)
    return run(engine, *parts), [gradients(engine, part.slot) for part in parts]


def test_adapters_of_one_pass_get_what_each_gets_alone(lab: Lab) -> None:
    engine = lab.engine("qwen3")
    parts = [
        batch(9, [30, 6], slot=3, lora=MIXED[0]),
        batch(6, [1], slot=0, lora=MIXED[1], loss="ppo"),
        batch(7, [17, 17, 40], slot=1, lora=MIXED[2], loss="importance_sampling"),
        batch(8, [64], slot=2, lora=MIXED[3]),
    ]

    results, found = together(engine, parts)
    expected_results, expected = alone(engine, parts)

    for result, other, grads, alone_grads in zip(results, expected_results, found, expected, strict=True):
        np.testing.assert_allclose(result.logprobs, other.logprobs, rtol=0, atol=5e-6)
        assert result.metrics == pytest.approx(other.metrics, rel=1e-5)
        for name, gradient in alone_grads.items():
            assert (grads[name] - gradient).abs().max() <= 2e-6 * max(1.0, float(gradient.abs().max())), name


def test_adapters_of_one_pass_get_the_same_bits_for_equal_lengths(lab: Lab) -> None:
    engine = lab.engine("llama")
    parts = [batch(slot, [32, 32], slot=slot, lora=spec(seed=slot)) for slot in range(4)]

    results, found = together(engine, parts)
    expected_results, expected = alone(engine, parts)

    for result, other, grads, alone_grads in zip(results, expected_results, found, expected, strict=True):
        assert result.logprobs.tobytes() == other.logprobs.tobytes()
        assert result.metrics == other.metrics
        assert all(torch.equal(grads[name], alone_grads[name]) for name in alone_grads)


@pytest.mark.parametrize("ruined", [0, 1, 3])
def test_nan_of_one_adapter_reaches_no_other(lab: Lab, ruined: int) -> None:
    engine = lab.engine("qwen2")
    parts = [batch(slot, [9, 20], slot=slot, lora=MIXED[slot]) for slot in range(4)]
    expected_results, expected = together(engine, parts)
    for part in parts:
        begin(engine, part.slot, part.lora)
    weights_N = engine.bank.row(ruined).weights
    weights_N.masked_fill_(weights_N != 0, torch.nan)

    outcomes = engine.forward_backward(parts)

    assert isinstance(outcomes[ruined], NotFinite)
    assert gradients(engine, ruined) == {}
    assert engine.bank.row(ruined).tokens == 0
    for slot in set(range(4)) - {ruined}:
        outcome = outcomes[slot]
        assert isinstance(outcome, PartResult)
        assert outcome.logprobs.tobytes() == expected_results[slot].logprobs.tobytes()
        found = gradients(engine, slot)
        assert all(torch.equal(found[name], expected[slot][name]) for name in expected[slot])


def test_a_ratio_that_overflows_fails_its_own_part_alone(lab: Lab) -> None:
    engine = lab.engine("llama")
    for slot in (0, 1):
        begin(engine, slot, spec(seed=slot))
    far = np.full(12, -200.0, dtype=np.float32)
    bad = batch(0, [12], slot=0, lora=spec(seed=0), loss="importance_sampling", old_logprobs=far)
    good = batch(1, [12], slot=1, lora=spec(seed=1), loss="importance_sampling")

    outcomes = engine.forward_backward([bad, good])

    assert isinstance(outcomes[0], NotFinite)
    assert isinstance(outcomes[1], PartResult)
    assert gradients(engine, 0) == {}
    assert gradients(engine, 1) != {}


def test_what_other_slots_hold_does_not_change_a_bit(lab: Lab) -> None:
    engine = lab.engine("llama")
    part = batch(1, [13, 50], slot=2)
    begin(engine, 2, part.lora)
    (expected,) = run(engine, part)
    expected_gradients = gradients(engine, 2)

    for slot in (0, 1, 3):
        begin(engine, slot, spec(rank=16, seed=slot))
        engine.bank.row(slot).weights.fill_(torch.inf)
    begin(engine, 2, part.lora)
    (result,) = run(engine, part)

    assert result.logprobs.tobytes() == expected.logprobs.tobytes()
    assert all(torch.equal(each, expected_gradients[name]) for name, each in gradients(engine, 2).items())


def test_the_slot_does_not_change_a_bit(lab: Lab) -> None:
    engine = lab.engine("llama")
    outcomes = []
    for slot in range(4):
        part = batch(1, [13, 50], slot=slot)
        begin(engine, slot, part.lora)
        (result,) = run(engine, part)
        outcomes.append((result.logprobs.tobytes(), gradients(engine, slot)))

    for logprobs, found in outcomes[1:]:
        assert logprobs == outcomes[0][0]
        assert all(torch.equal(found[name], outcomes[0][1][name]) for name in found)


def test_a_part_larger_than_a_pass_runs_in_several(lab: Lab) -> None:
    part = batch(2, [20, 30, 10, 40, 5])
    whole, cut = lab.engine("llama"), lab.engine("llama", pass_tokens=32)
    for engine in (whole, cut):
        begin(engine, 0, part.lora)

    (expected,), (result,) = run(whole, part), run(cut, part)

    np.testing.assert_allclose(result.logprobs, expected.logprobs, rtol=0, atol=5e-6)
    for name, gradient in gradients(whole, 0).items():
        assert (gradients(cut, 0)[name] - gradient).abs().max() <= 5e-6 * max(
            1.0, float(gradient.abs().max())
        )


def test_a_bfloat16_model_trains_as_the_float32_one(lab: Lab) -> None:
    engine, exact = lab.engine("qwen3", dtype="bfloat16"), lab.engine("qwen3")
    lora = spec(rank=6, alpha=16.0)
    part = batch(3, [30, 9], lora=lora)
    for each in (engine, exact):
        begin(each, 0, lora)

    (result,), (expected,) = run(engine, part), run(exact, part)

    # On a CPU adapters are float32 whatever the model is.
    assert engine.bank.row(0).weights is engine.bank.row(0).main
    assert engine.details.dtype == "bfloat16"
    np.testing.assert_allclose(result.logprobs, expected.logprobs, atol=0.35)
    for name, gradient in gradients(exact, 0).items():
        found = gradients(engine, 0)[name]
        assert torch.nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.97, name
