"""cross_entropy with K weighted targets a position: soft targets, negative weights, custom losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loractl.bus.errors import InvalidData, NotFinite
from loractl.tests.trainer_actor.compute_lab import VOCAB, Lab, batch, begin, gradients, run, spec
from loractl.tests.trainer_actor.compute_reference import WidestLogits, plain_pass
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import PassPart

LENGTHS = [11, 40, 3, 33]


def many(seed: int, lengths: list[int], k: int = 5, /, **changes: object) -> PassPart:
    """Random targets [T, k] and weights of either sign; many are 0, as in tensors that were sparse."""
    draw = np.random.default_rng(seed + 100)
    shape = (sum(lengths), k)
    weights = draw.normal(0, 1, shape) * (draw.random(shape) > 0.5)
    targets = np.where(weights == 0, 0, draw.integers(0, VOCAB, shape))
    return batch(seed, lengths, targets=targets, weights=weights.astype(np.float32), **changes)


def column(part: PassPart, k: int) -> PassPart:
    return replace(part, targets=part.targets[:, k].copy(), weights=part.weights[:, k].copy())


def weighted(lp: torch.Tensor, datum: dict[str, torch.Tensor]) -> torch.Tensor:
    return -(datum["weights"] * lp).sum()


def trained(engine: TrainEngine, part: PassPart) -> dict[str, torch.Tensor]:
    begin(engine, part.slot, part.lora)
    run(engine, part)
    return gradients(engine, part.slot)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_loss_logprobs_and_every_gradient_are_pefts(lab: Lab, family: str) -> None:
    engine, part = lab.engine(family), many(0, LENGTHS, slot=1)
    begin(engine, 1, part.lora)

    (result,) = run(engine, part)

    logprobs, total, expected = plain_pass(lab, family, engine, part, weighted)
    found = gradients(engine, 1)
    np.testing.assert_allclose(result.logprobs, logprobs.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.loss_terms, -part.weights * logprobs.numpy(), rtol=0, atol=1e-4)
    assert result.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
    assert result.metrics["weights:sum"] == pytest.approx(float(part.weights.sum()), rel=1e-4)
    assert result.metrics["tokens:sum"] == (part.weights != 0).any(axis=1).sum()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


def test_one_target_in_two_dimensions_is_the_one_in_one_bit_for_bit(lab: Lab) -> None:
    engine, part = lab.engine("llama"), batch(0, LENGTHS)
    expected = trained(engine, part)
    (flat,) = run(engine, replace(part, backward=False))

    wide = replace(part, targets=part.targets[:, None], weights=part.weights[:, None])
    found = trained(engine, wide)
    (result,) = run(engine, replace(wide, backward=False))

    assert result.logprobs.shape == result.loss_terms.shape == (sum(LENGTHS), 1)
    assert result.logprobs.tobytes() == flat.logprobs.tobytes()
    assert result.metrics == flat.metrics
    assert all(torch.equal(found[name], each) for name, each in expected.items())


def test_each_target_is_scored_as_if_it_were_alone(lab: Lab) -> None:
    engine, part = lab.engine("llama"), many(0, LENGTHS)
    begin(engine, 0, part.lora)

    (together,) = run(engine, part)

    for k in range(5):
        (alone,) = run(engine, replace(column(part, k), backward=False))
        assert together.logprobs[:, k].tobytes() == alone.logprobs.tobytes()


def test_gradients_of_several_targets_are_the_sum_of_each(lab: Lab) -> None:
    engine, part = lab.engine("llama"), many(0, LENGTHS)
    together = trained(engine, part)

    begin(engine, 0, part.lora)
    for k in range(5):
        run(engine, column(part, k))

    for name, each in gradients(engine, 0).items():
        assert (together[name] - each).abs().max() <= 1e-5 * max(1.0, float(each.abs().max())), name


def test_opposite_weights_have_the_opposite_gradient(lab: Lab) -> None:
    engine = lab.engine("llama")
    for part in (many(0, LENGTHS), batch(0, LENGTHS)):
        expected = trained(engine, part)

        found = trained(engine, replace(part, weights=-part.weights))

        assert all(torch.equal(found[name], -each) for name, each in expected.items())


def test_weights_that_cancel_on_one_target_have_no_gradient(lab: Lab) -> None:
    engine, part = lab.engine("llama"), batch(0, [20])
    twice = replace(
        part,
        targets=np.stack([part.targets] * 2, axis=1),
        weights=np.stack([part.weights, -part.weights], axis=1),
    )

    assert not any(bool(each.any()) for each in trained(engine, twice).values())


def test_weights_that_sum_to_zero_over_different_targets_still_train(lab: Lab) -> None:
    engine, part = lab.engine("llama"), batch(0, [20])
    contrast = replace(
        part,
        targets=np.stack([part.targets, (part.targets + 1) % VOCAB], axis=1),
        weights=np.tile(np.array([1.0, -1.0], np.float32), (20, 1)),
    )
    found = trained(engine, contrast)

    _, _, expected = plain_pass(lab, "llama", engine, contrast, weighted)

    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("k", [1, 3])
def test_weights_of_zero_give_logprobs_and_no_gradient(lab: Lab, k: int) -> None:
    engine, part = lab.engine("llama"), many(0, [20, 9], k)
    part = replace(part, weights=np.zeros_like(part.weights))
    begin(engine, 0, part.lora)

    (result,) = run(engine, part)

    assert np.isfinite(result.logprobs).all()
    assert (result.logprobs < 0).all()
    assert not result.loss_terms.any()
    assert result.metrics == {"loss:sum": 0.0, "tokens:sum": 0.0, "weights:sum": 0.0}
    assert not any(bool(each.any()) for each in gradients(engine, 0).values())


def test_a_loss_of_the_clients_own_is_trained_through_weights(lab: Lab) -> None:
    """Score, differentiate any function of log p at home, send its slopes back as weights."""
    engine, part = lab.engine("llama"), many(0, LENGTHS)
    begin(engine, 0, part.lora)

    def own(lp: torch.Tensor, _: dict[str, torch.Tensor]) -> torch.Tensor:
        return (lp.exp() * torch.arange(5)).sum() + lp.logsumexp(1).square().mean()

    (scored,) = run(engine, replace(part, backward=False))
    logprobs = torch.tensor(scored.logprobs, requires_grad=True)
    (slopes,) = torch.autograd.grad(sum(own(lp, {}) for lp in logprobs.split(LENGTHS)), logprobs)

    run(engine, replace(part, weights=-slopes.numpy()))

    _, _, expected = plain_pass(lab, "llama", engine, part, own)
    for name, gradient in expected.items():
        assert (gradients(engine, 0)[name] - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


def test_logits_of_all_targets_never_exist(lab: Lab) -> None:
    engine, part = lab.engine("llama"), many(0, [200, 150], 7)
    begin(engine, 0, part.lora)

    with WidestLogits() as seen:
        run(engine, part)

    # As for one target: 16 is the engine's logits_chunk; 64 is the transposed weight.
    assert seen.rows == 64


def test_a_part_of_several_passes_answers_in_its_order(lab: Lab) -> None:
    small, large = lab.engine("llama", pass_tokens=45), lab.engine("llama")
    part = many(0, LENGTHS)
    for engine in (small, large):
        begin(engine, 0, part.lora)

    (one,), (other,) = run(small, part), run(large, part)

    np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=2e-6)
    for name, each in gradients(large, 0).items():
        assert (gradients(small, 0)[name] - each).abs().max() <= 2e-6 * max(1.0, float(each.abs().max()))


def test_parts_with_different_numbers_of_targets_share_a_pass(lab: Lab) -> None:
    engine = lab.engine("llama")
    parts = [
        many(0, [32], 2, slot=0, lora=spec(seed=0)),
        many(1, [32], 9, slot=1, lora=spec(seed=1)),
        batch(2, [32], slot=2, lora=spec(seed=2)),
        batch(3, [32], slot=3, lora=spec(seed=3), loss="gspo"),
    ]
    alone = []
    for part in parts:
        alone.append(trained(engine, part))
        begin(engine, part.slot, part.lora)

    together = run(engine, *parts)

    for part, result, expected in zip(parts, together, alone, strict=True):
        assert result.logprobs.shape == part.targets.shape
        found = gradients(engine, part.slot)
        assert all(torch.equal(found[name], each) for name, each in expected.items())


def test_a_sum_that_overflows_leaves_the_adapter_as_it_was(lab: Lab) -> None:
    engine, part = lab.engine("llama"), many(0, [20])
    begin(engine, 0, part.lora)

    (outcome,) = engine.forward_backward([replace(part, weights=np.full((20, 5), 3e38, np.float32))])

    assert isinstance(outcome, NotFinite)
    assert gradients(engine, 0) == {}


NINE = {"targets": np.zeros((9, 2), np.int64), "weights": np.ones((9, 2), np.float32)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {**NINE, "weights": np.ones(9, np.float32)},
            r"weights has shape \[9\]; cross_entropy needs \[9, 2\]",
        ),
        ({**NINE, "weights": np.ones((9, 3), np.float32)}, r"needs \[9, 2\]"),
        ({**NINE, "targets": np.zeros((8, 2), np.int64)}, r"targets has shape \[8, 2\]; .* needs \[9, 2\]"),
        ({**NINE, "targets": np.zeros((9, 0), np.int64)}, r"targets has shape \[9, 0\]"),
        ({**NINE, "targets": np.zeros((9, 2, 1), np.int64)}, r"needs \[9\]"),
        (
            {**NINE, "targets": np.full((9, 2), VOCAB)},
            r"targets\[0, 0\] is 320; the vocabulary has ids 0 to 319",
        ),
        ({**NINE, "weights": np.full((9, 2), np.inf, np.float32)}, r"weights\[0, 0\] is inf"),
        ({**NINE, "loss": "ppo"}, r"ppo takes one target a position, only cross_entropy takes several"),
        ({**NINE, "loss": "gspo"}, "gspo takes one target"),
        ({"tokens": np.zeros((9, 1), np.int64)}, r"tokens has shape \[9, 1\]"),
        ({"tokens": np.full(9, -3)}, r"tokens\[0\] is -3"),
        ({"lengths": np.array([[9]])}, "lengths has shape"),
        ({"lengths": np.array(9)}, "lengths has shape"),
        ({"lengths": np.array([0])}, "datum 0 has 0 positions"),
        (
            {"loss": "gspo", "ratio_mask": np.ones(8, np.float32)},
            r"ratio_mask has shape \[8\]; gspo needs \[9\]",
        ),
        ({"loss": "gspo", "ratio_mask": np.full(9, np.nan, np.float32)}, r"ratio_mask\[0\] is nan"),
        ({"loss": "cispo", "ratio_mask": np.ones(9, np.float32)}, "cispo does not use ratio_mask"),
        ({"old_logprobs": np.ones(9, np.float32)}, "cross_entropy does not use old_logprobs"),
        ({"loss": "dro", "old_logprobs": np.full(9, np.nan, np.float32)}, r"old_logprobs\[0\] is nan"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_refused_by_name(lab: Lab, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidData, match=says):
        lab.engine("llama").check_part(batch(0, [9], **changes))
