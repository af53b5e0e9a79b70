"""cispo, dro, gspo and stable_reinforce on a model: every gradient is PEFT's, and nobody is bothered."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loractl.bus.errors import NotFinite
from loractl.bus.loss_settings import LOSS_SETTINGS
from loractl.bus.messages import LossName
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, gradients, run, spec, state_in
from loractl.tests.trainer_actor.compute_reference import WidestLogits, plain_pass
from loractl.trainer_actor.passes import PassPart

NEW: list[LossName] = ["cispo", "dro", "gspo", "stable_reinforce"]


def near(part: PassPart, logprobs: np.ndarray) -> PassPart:
    """The part as if it had been sampled from a policy close to this one, so that clipping decides."""
    noise = np.random.default_rng(9).normal(0, 1e-3, len(logprobs))
    return replace(part, old_logprobs=(logprobs + noise).astype(np.float32))


def plain_loss(name: LossName, config: dict[str, float]):  # type: ignore[no-untyped-def]
    """The definitions, for whole datums and plain autograd."""

    def loss(lp: torch.Tensor, datum: dict[str, torch.Tensor]) -> torch.Tensor:
        counted = datum["weights"] != 0
        q, a = datum["old_logprobs"], datum["advantages"]
        ratio = (lp - q).exp()
        low, high = config.get("clip_low_threshold"), config.get("clip_high_threshold")
        match name:
            case "cispo":
                gain = ratio.detach().clamp(low, high) * lp * a
            case "dro":
                gain = lp * a - 0.5 * config["beta"] * (lp - q) ** 2
            case "stable_reinforce":
                gain = ratio * a - 0.5 * config["kl_coeff"] * (lp - q) ** 2
            case _:
                mask = datum["ratio_mask"] if len(datum["ratio_mask"]) else counted.float()
                mean = ((lp.detach() - q) * (mask != 0)).sum() / (mask != 0).sum().clamp(min=1)
                whole = (mean + lp - lp.detach()).exp()
                gain = torch.minimum(whole * a, whole.clamp(low, high) * a)
        return -gain[counted].sum()

    return loss


@pytest.mark.parametrize(
    ("loss", "config", "masked"),
    [
        ("cispo", {}, False),
        ("dro", {}, False),
        ("dro", {"beta": 0.9}, False),
        ("gspo", {}, False),
        ("gspo", {}, True),
        ("stable_reinforce", {}, False),
        ("stable_reinforce", {"kl_coeff": 0.9}, False),
    ],
)
def test_every_gradient_of_a_new_loss_is_pefts(
    lab: Lab, loss: LossName, config: dict[str, float], masked: bool
) -> None:
    engine, lora = lab.engine("qwen3-untied"), spec(rank=4)
    lengths = [11, 64, 3, 40]  # padded, and cut by chunks of 16 positions
    mask = (np.arange(118 if masked else 0) % 4 != 1).astype(np.float32)
    part = batch(5, lengths, slot=2, lora=lora, loss=loss, loss_config=config, ratio_mask=mask)
    begin(engine, 2, lora)
    part = near(part, run(engine, replace(part, backward=False))[0].logprobs)

    (result,) = run(engine, part)

    plain = plain_loss(loss, {**LOSS_SETTINGS[loss], **config})
    logprobs, total, expected = plain_pass(lab, "qwen3-untied", engine, part, plain)
    found = gradients(engine, 2)
    np.testing.assert_allclose(result.logprobs, logprobs.numpy(), rtol=0, atol=1e-5)
    assert result.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_gspo_clips_some_sequences_and_not_others(lab: Lab) -> None:
    engine = lab.engine("llama")
    part = batch(
        5, [40, 40], loss="gspo", weights=np.ones(80, np.float32), advantages=np.ones(80, np.float32)
    )
    begin(engine, 0, part.lora)
    logprobs = run(engine, replace(part, backward=False))[0].logprobs
    # The first datum's ratio is exp(0.01), above the threshold; the second's is 1.
    far = np.repeat([0.01, 0.0], 40).astype(np.float32)
    part = replace(part, old_logprobs=logprobs - far)

    (both,) = run(engine, part)
    found = gradients(engine, 0)

    begin(engine, 0, part.lora)
    second = {
        name: getattr(part, name)[40:]
        for name in ("tokens", "targets", "weights", "old_logprobs", "advantages")
    }
    run(engine, replace(part, lengths=part.lengths[1:], **second))
    alone = gradients(engine, 0)
    assert both.metrics["clipped:mean"] == 0.5
    assert all(
        (found[name] - each).abs().max() < 2e-6 * max(1.0, float(each.abs().max()))
        for name, each in alone.items()
    )


@pytest.mark.parametrize("loss", NEW)
def test_new_losses_are_the_same_alone_and_among_neighbours(lab: Lab, loss: LossName) -> None:
    engine = lab.engine("llama")
    others: list[LossName] = [other for other in LOSS_SETTINGS if other != loss][:3]
    parts = [
        batch(slot, [32], slot=slot, lora=spec(seed=slot, rank=4 + slot), loss=each)
        for slot, each in enumerate([loss, *others])
    ]
    alone = []
    for part in parts:
        begin(engine, part.slot, part.lora)
        alone.append((run(engine, part)[0], gradients(engine, part.slot)))
        begin(engine, part.slot, part.lora)

    together = run(engine, *parts)

    for part, result, (expected, expected_gradients) in zip(parts, together, alone, strict=True):
        assert result.metrics == expected.metrics
        assert result.logprobs.tobytes() == expected.logprobs.tobytes()
        assert result.loss_terms.tobytes() == expected.loss_terms.tobytes()
        found = gradients(engine, part.slot)
        assert all(torch.equal(found[name], expected_gradients[name]) for name in found)


@pytest.mark.parametrize("loss", NEW)
def test_forward_only_changes_nothing_and_answers_the_same(lab: Lab, loss: LossName) -> None:
    engine = lab.engine("llama")
    part = batch(0, [30, 9], loss=loss)
    begin(engine, 0, part.lora)
    (trained,) = run(engine, part)
    before = gradients(engine, 0)

    (result,) = run(engine, replace(part, backward=False))

    assert all(torch.equal(each, before[name]) for name, each in gradients(engine, 0).items())
    assert state_in(engine, 0).tokens == 39
    assert result.logprobs.tobytes() == trained.logprobs.tobytes()
    assert result.metrics == trained.metrics


@pytest.mark.parametrize("loss", NEW)
def test_without_advantages_only_a_penalty_has_a_gradient(lab: Lab, loss: LossName) -> None:
    engine = lab.engine("llama")
    part = batch(0, [30], loss=loss, advantages=np.zeros(30, np.float32))
    begin(engine, 0, part.lora)

    (result,) = run(engine, part)

    penalised = loss in ("dro", "stable_reinforce")
    assert (result.metrics["loss:sum"] != 0) == penalised
    assert any(bool(each.any()) for each in gradients(engine, 0).values()) == penalised
    assert engine.optim_step(0, adam()).applied


def test_a_gspo_part_of_several_passes_is_the_one_of_a_single_pass(lab: Lab) -> None:
    small, large = lab.engine("llama", pass_tokens=40), lab.engine("llama")
    mask = (np.arange(90) % 2).astype(np.float32)
    part = batch(3, [30, 9, 26, 25], loss="gspo", ratio_mask=mask)
    for engine in (small, large):
        begin(engine, 0, part.lora)
    part = near(part, run(large, replace(part, backward=False))[0].logprobs)

    (one,), (other,) = run(small, part), run(large, part)

    np.testing.assert_allclose(one.loss_terms, other.loss_terms, rtol=0, atol=2e-6)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5, abs=1e-5)
    for name, gradient in gradients(large, 0).items():
        assert (gradients(small, 0)[name] - gradient).abs().max() <= 2e-6 * max(
            1.0, float(gradient.abs().max())
        )


def test_two_walks_never_hold_the_logits_of_all_positions(lab: Lab) -> None:
    engine = lab.engine("llama")
    part = batch(0, [200, 150], loss="gspo")
    begin(engine, 0, part.lora)

    with WidestLogits() as seen:
        run(engine, part)

    # As for other losses: 16 is the engine's logits_chunk; 64 is the transposed weight.
    assert seen.rows == 64


def test_a_ratio_that_overflows_fails_only_losses_that_hold_it(lab: Lab) -> None:
    engine = lab.engine("llama")
    part = batch(0, [30], old_logprobs=np.full(30, -200, np.float32), loss="importance_sampling")
    begin(engine, 0, part.lora)

    (failed,) = engine.forward_backward([part])
    (bounded,) = run(engine, replace(part, loss="cispo"))

    assert isinstance(failed, NotFinite)
    assert bounded.metrics["clipped:mean"] == 1.0
