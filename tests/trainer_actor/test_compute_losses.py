"""Losses against their closed forms; settings refused by name; logits never exist together."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from loractl.bus.errors import InvalidRequest
from loractl.bus.messages import LossName
from loractl.tests.trainer_actor.compute_lab import Lab, batch, begin, gradients, run, spec, state_in
from loractl.tests.trainer_actor.compute_reference import WidestLogits
from loractl.trainer_actor.loss_metrics import loss_metrics
from loractl.trainer_actor.loss_settings import checked_settings
from loractl.trainer_actor.losses import LossInputs, loss_terms


def inputs(**changes: torch.Tensor) -> LossInputs:
    draw = torch.Generator().manual_seed(0)
    values = {
        "weights_T": torch.rand(50, generator=draw).masked_fill(torch.rand(50, generator=draw) < 0.3, 0.0),
        "old_logprobs_T": torch.randn(50, generator=draw),
        "advantages_T": torch.randn(50, generator=draw),
    }
    return LossInputs(**{**values, **changes})


def closed_form(
    loss: LossName, lp: np.ndarray, given: LossInputs, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Terms and d term / d lp, position by position, from the definitions."""
    terms, slopes = np.zeros(len(lp)), np.zeros(len(lp))
    for i, value in enumerate(lp):
        w, q, a = (float(x[i]) for x in (given.weights_T, given.old_logprobs_T, given.advantages_T))
        if loss == "cross_entropy":
            terms[i], slopes[i] = -w * value, -w
        elif w != 0:
            ratio = math.exp(value - q)
            clipped = min(max(ratio, low), high)
            if loss == "importance_sampling" or ratio * a <= clipped * a:
                terms[i], slopes[i] = -ratio * a, -ratio * a
            else:
                terms[i] = -clipped * a
    return terms, slopes


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        ("cross_entropy", {}),
        ("importance_sampling", {}),
        ("ppo", {}),
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.0}),
    ],
)
def test_a_loss_is_its_closed_form(loss: LossName, config: Mapping[str, float]) -> None:
    given = inputs()
    logprobs = torch.randn(50, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    settings = checked_settings(loss, config)

    terms = loss_terms(loss, logprobs, given, settings)
    terms.sum().backward()

    bounds = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2, **config}
    expected, slopes = closed_form(loss, logprobs.detach().numpy(), given, *bounds.values())
    np.testing.assert_allclose(terms.detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo"])
def test_left_out_positions_count_for_nothing_whatever_they_hold(loss: LossName) -> None:
    given = inputs(old_logprobs_T=torch.full((50,), -1e30), weights_T=torch.zeros(50))
    logprobs = torch.randn(50).requires_grad_()

    terms = loss_terms(loss, logprobs, given, checked_settings(loss, {}))
    terms.sum().backward()

    assert not terms.any()
    assert logprobs.grad is not None
    assert not logprobs.grad.any()
    metrics = loss_metrics(loss, logprobs.detach(), terms.detach(), given, checked_settings(loss, {}))
    assert metrics == {"loss:sum": 0.0, "tokens:sum": 0.0}


def test_metrics_name_how_they_combine() -> None:
    given = inputs(
        weights_T=torch.tensor([1.0, 1.0, 0.0, 2.0]),
        old_logprobs_T=torch.tensor([-1.0, -1.0, -9.0, -1.0]),
        advantages_T=torch.tensor([1.0, -1.0, 5.0, 1.0]),
    )
    logprobs = torch.tensor([-0.5, -1.5, -1.0, -1.0])
    settings = checked_settings("ppo", {})

    metrics = loss_metrics("ppo", logprobs, loss_terms("ppo", logprobs, given, settings), given, settings)

    ratios = [math.exp(0.5), math.exp(-0.5), 1.0]
    assert metrics == pytest.approx(
        {
            "loss:sum": -1.2 + 0.8 - 1.0,
            "tokens:sum": 3.0,
            "ratio:mean": sum(ratios) / 3,
            "ratio:max": ratios[0],
            "kl:mean": 0.0,
            "clipped:mean": 2 / 3,
        }
    )


@pytest.mark.parametrize(
    ("loss", "config", "word"),
    [
        ("cross_entropy", {"clip_low_threshold": 0.8}, "clip_low_threshold"),
        ("ppo", {"clip_low": 0.8}, "nearest is 'clip_low_threshold'"),
        ("ppo", {"clip_low_threshold": 1.5}, "low <= high"),
        ("ppo", {"clip_low_threshold": -0.2}, "low <= high"),
        ("ppo", {"clip_high_threshold": math.nan}, "finite"),
    ],
)
def test_settings_that_a_loss_does_not_have_are_refused(
    lab: Lab, loss: LossName, config: dict[str, float], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        lab.engine("llama").check_part(batch(0, [9], loss=loss, loss_config=config))


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo"])
def test_the_chunked_output_is_autograds(lab: Lab, loss: LossName) -> None:
    engine = lab.engine("llama")
    lora = spec(rank=8, train_attn=False, train_mlp=False)
    part = batch(4, [30, 21], lora=lora, loss=loss)
    begin(engine, 0, lora)
    (result,) = run(engine, part)
    found = gradients(engine, 0)

    model = lab.model("llama").model
    with torch.no_grad():
        hidden = torch.cat(
            [model(tokens[None]).last_hidden_state[0] for tokens in torch.tensor(part.tokens).split([30, 21])]
        )
    tensors, _ = engine.checkpoint_tensors(state_in(engine, 0))
    a, b = (
        tensors[f"main/base_model.model.lm_head.lora_{which}.weight"].clone().requires_grad_()
        for which in "AB"
    )
    logits = hidden @ engine._compute.backbone.output_weight.t() + 3.0 * (hidden @ a.t()) @ b.t()
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(part.targets)[:, None]).squeeze(1)
    given = LossInputs(
        weights_T=torch.tensor(part.weights),
        old_logprobs_T=torch.tensor(part.old_logprobs),
        advantages_T=torch.tensor(part.advantages),
    )
    loss_terms(loss, logprobs, given, checked_settings(loss, {})).sum().backward()

    np.testing.assert_allclose(result.logprobs, logprobs.detach().numpy(), rtol=0, atol=1e-5)
    for which, expected in (("A", a.grad), ("B", b.grad)):
        assert expected is not None
        gradient = found[f"base_model.model.lm_head.lora_{which}.weight"]
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_logits_of_all_positions_never_exist(lab: Lab) -> None:
    engine = lab.engine("llama")
    lora = spec()
    part = batch(0, [200, 150], lora=lora)
    begin(engine, 0, lora)

    with WidestLogits() as seen:
        run(engine, part)

    # 16 is the engine's logits_chunk; 64 is the transposed weight [hidden, vocabulary].
    assert seen.rows == 64
    assert len(part.tokens) > 4 * seen.rows


def test_the_chunk_changes_no_number_beyond_rounding(lab: Lab) -> None:
    part = batch(0, [60, 33])
    small, large = lab.engine("llama", logits_chunk=7), lab.engine("llama", logits_chunk=512)
    for engine in (small, large):
        begin(engine, 0, part.lora)

    (one,), (other,) = run(small, part), run(large, part)

    np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=2e-6)
    for name, gradient in gradients(large, 0).items():
        assert (gradients(small, 0)[name] - gradient).abs().max() <= 2e-6 * max(
            1.0, float(gradient.abs().max())
        )


def test_losses_of_one_pass_do_not_mix(lab: Lab) -> None:
    engine = lab.engine("llama")
    parts = [
        batch(0, [32], slot=0, lora=spec(seed=0), loss="ppo"),
        batch(1, [32], slot=1, lora=spec(seed=1), loss="ppo", loss_config={"clip_high_threshold": 1.0}),
        batch(2, [32], slot=2, lora=spec(seed=2), loss="importance_sampling"),
        batch(3, [32], slot=3, lora=spec(seed=3)),
    ]
    alone = []
    for part in parts:
        begin(engine, part.slot, part.lora)
        alone.append((run(engine, part)[0], gradients(engine, part.slot)))
        begin(engine, part.slot, part.lora)

    together = run(engine, *parts)

    for part, result, (expected, expected_gradients) in zip(parts, together, alone, strict=True):
        assert result.metrics == expected.metrics
        found = gradients(engine, part.slot)
        assert all(torch.equal(found[name], expected_gradients[name]) for name in found)
