"""cispo, dro, gspo and stable_reinforce: their formulas, derivatives, metrics and settings, without a model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loractl.bus.errors import InvalidRequest
from loractl.bus.loss_settings import LOSS_SETTINGS
from loractl.bus.messages import LossName
from loractl.client.datums import Batch, Packed, pack, sampled_datum
from loractl.tests.trainer_actor.compute_lab import Lab, batch
from loractl.trainer_actor.loss_metrics import loss_metrics
from loractl.trainer_actor.loss_settings import checked_settings
from loractl.trainer_actor.losses import LossInputs, loss_terms, terms_and_slopes

NEW: list[LossName] = ["cispo", "dro", "gspo", "stable_reinforce"]
LENGTHS = [20, 1, 29]
REDUCTIONS = {"mean", "sum", "min", "max", "slack", "hash2", "unique"}


def inputs(**changes: torch.Tensor) -> LossInputs:
    draw = torch.Generator().manual_seed(0)
    dropped = torch.rand(50, generator=draw) < 0.3
    values = {
        "weights_T": torch.rand(50, generator=draw).masked_fill(dropped, 0.0),
        "old_logprobs_T": torch.randn(50, generator=draw),
        "advantages_T": torch.randn(50, generator=draw),
        "lengths_B": torch.tensor(LENGTHS),
    }
    return LossInputs(**{**values, **changes})


def some_logprobs() -> torch.Tensor:
    return torch.randn(50, generator=torch.Generator().manual_seed(1)).double()


def closed_form(
    loss: LossName, lp: list[float], given: LossInputs, settings: dict[str, float]
) -> tuple[list[float], list[float]]:
    """Terms and d term / d lp in plain Python, position by position, from the definitions."""
    w, q, a = (
        [float(x) for x in each] for each in (given.weights_T, given.old_logprobs_T, given.advantages_T)
    )
    mask = [float(x) for x in given.ratio_mask_T] or w
    low, high = settings.get("clip_low_threshold", 0.0), settings.get("clip_high_threshold", math.inf)
    terms, slopes, start = [], [], 0
    for length in LENGTHS:
        mine = range(start, start + length)
        start += length
        counted = [lp[i] - q[i] for i in mine if mask[i] != 0]
        whole = math.exp(sum(counted) / len(counted)) if counted else 1.0
        for i in mine:
            ratio, clipped = math.exp(lp[i] - q[i]), min(max(math.exp(lp[i] - q[i]), low), high)
            term = slope = 0.0
            match loss:
                case "cispo":
                    term, slope = -clipped * lp[i] * a[i], -clipped * a[i]
                case "dro":
                    far = lp[i] - q[i]
                    term = -(lp[i] * a[i] - settings["beta"] / 2 * far**2)
                    slope = -(a[i] - settings["beta"] * far)
                case "gspo":
                    bounded = min(max(whole, low), high)
                    inside = whole * a[i] <= bounded * a[i]
                    term = -min(whole * a[i], bounded * a[i])
                    slope = -whole * a[i] if inside else 0.0
                case "stable_reinforce":
                    far = lp[i] - q[i]
                    term = -ratio * a[i] + settings["kl_coeff"] * far**2 / 2
                    slope = -ratio * a[i] + settings["kl_coeff"] * far
            terms.append(term if w[i] != 0 else 0.0)
            slopes.append(slope if w[i] != 0 else 0.0)
    return terms, slopes


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        *((loss, {}) for loss in NEW),
        ("cispo", {"clip_low_threshold": 0.7, "clip_high_threshold": 1.1}),
        ("dro", {"beta": 0.8}),
        ("dro", {"beta": 0.0}),
        ("gspo", {"clip_low_threshold": 0.2, "clip_high_threshold": 3.0}),
        ("stable_reinforce", {"kl_coeff": 0.5}),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_new_loss_is_its_closed_form(loss: LossName, config: dict[str, float], masked: bool) -> None:
    mask = (torch.arange(50) % 3 != 0).float() if masked else torch.empty(0)
    given = inputs(ratio_mask_T=mask)
    settings = checked_settings(loss, config)

    terms, slopes = terms_and_slopes(loss, some_logprobs(), given, settings)

    expected, expected_slopes = closed_form(loss, some_logprobs().tolist(), given, settings)
    np.testing.assert_allclose(terms.numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(slopes.numpy(), expected_slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["dro", "stable_reinforce"])
def test_slopes_are_finite_differences(loss: LossName) -> None:
    given, settings, step = inputs(), checked_settings(loss, {}), 1e-6
    _, slopes = terms_and_slopes(loss, some_logprobs(), given, settings)

    above, below = (loss_terms(loss, some_logprobs() + far, given, settings) for far in (step, -step))

    np.testing.assert_allclose(((above - below) / (2 * step)).numpy(), slopes.numpy(), rtol=1e-5, atol=1e-7)


def test_where_the_policy_is_the_sampler_every_ratio_loss_has_the_gradient_of_importance_sampling() -> None:
    given = replace(inputs(), old_logprobs_T=some_logprobs().float())
    logprobs = given.old_logprobs_T.clone()
    losses: list[LossName] = ["importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce"]

    slopes = [terms_and_slopes(loss, logprobs, given, dict(LOSS_SETTINGS[loss]))[1] for loss in losses]

    assert all(torch.equal(each, slopes[0]) for each in slopes)


@pytest.mark.parametrize("loss", NEW)
def test_left_out_positions_count_for_nothing_in_a_new_loss(loss: LossName) -> None:
    given = inputs(old_logprobs_T=torch.full((50,), -1e30), weights_T=torch.zeros(50))
    settings = checked_settings(loss, {})

    terms, slopes = terms_and_slopes(loss, some_logprobs().float(), given, settings)

    assert not terms.any()
    assert not slopes.any()
    metrics = loss_metrics(loss, some_logprobs().float(), terms, given, settings)
    substitute = {"stable_reinforce_substitute:max": 1.0} if loss == "stable_reinforce" else {}
    assert metrics == {"loss:sum": 0.0, "tokens:sum": 0.0, **substitute}


@pytest.mark.parametrize("loss", [loss for loss in LOSS_SETTINGS if loss != "cross_entropy"])
def test_a_batch_of_the_client_has_the_mean_over_its_trained_tokens(loss: LossName) -> None:
    draw = np.random.default_rng(0)
    datums = tuple(
        sampled_datum([1, 2], [3] * n, draw.normal(-1, 0.1, n).tolist(), draw.normal(0, 1, n).tolist())
        for n in (3, 5)
    )
    (scaled,) = Batch(datums).operations(loss)

    def total(packed: Packed) -> float:
        given = LossInputs(
            weights_T=torch.tensor(packed.weights),
            old_logprobs_T=torch.tensor(packed.old_logprobs),
            advantages_T=torch.tensor(packed.advantages),
            lengths_B=torch.tensor(packed.lengths),
        )
        settings = checked_settings(loss, packed.loss_config)
        return float(loss_terms(loss, some_logprobs()[:10], given, settings).sum())

    assert total(scaled) == pytest.approx(total(pack(datums, loss)) / 8, rel=1e-5)


def test_a_mask_that_counts_nothing_makes_a_ratio_of_one() -> None:
    given = inputs(ratio_mask_T=torch.zeros(50))

    terms, _ = terms_and_slopes("gspo", some_logprobs().float(), given, checked_settings("gspo", {}))

    assert torch.equal(terms, torch.where(given.weights_T != 0, -given.advantages_T, 0.0))


@pytest.mark.parametrize("loss", LOSS_SETTINGS)
def test_metrics_have_one_colon_and_a_known_reduction(loss: LossName) -> None:
    given, settings = inputs(), checked_settings(loss, {})
    terms, _ = terms_and_slopes(loss, some_logprobs().float(), given, settings)

    metrics = loss_metrics(loss, some_logprobs().float(), terms, given, settings)

    assert all(name.count(":") == 1 and name.split(":")[1] in REDUCTIONS for name in metrics)
    assert metrics["loss:sum"] == pytest.approx(float(terms.sum()), rel=1e-5)
    assert metrics["tokens:sum"] == int((given.weights_T != 0).sum())
    assert all(math.isfinite(value) for value in metrics.values())


def test_padding_where_nothing_was_sampled_counts_for_nothing() -> None:
    prompt = torch.arange(50) < 20
    zeros = {
        name: getattr(inputs(), name).masked_fill(prompt, 0.0) for name in ("old_logprobs_T", "advantages_T")
    }
    given = inputs(weights_T=torch.ones(50), **zeros)
    left_out = replace(given, weights_T=(~prompt).float())
    settings = checked_settings("stable_reinforce", {"kl_coeff": 0.5})
    logprobs = some_logprobs().float()

    terms, slopes = terms_and_slopes("stable_reinforce", logprobs, given, settings)

    expected, expected_slopes = terms_and_slopes("stable_reinforce", logprobs, left_out, settings)
    assert torch.equal(terms, expected)
    assert torch.equal(slopes, expected_slopes)
    padded, weighted = (
        loss_metrics("stable_reinforce", logprobs, terms, each, settings) for each in (given, left_out)
    )
    assert padded == {**weighted, "tokens:sum": 50.0}
    # Nor does it count in a sequence's ratio, unless a mask says so.
    whole, part = (
        terms_and_slopes("gspo", logprobs, each, checked_settings("gspo", {}))[0]
        for each in (given, left_out)
    )
    assert torch.equal(whole, part)
    # dro is what it is defined to be, over every position that is not left out.
    assert terms_and_slopes("dro", logprobs, given, {"beta": 0.5})[1][prompt].all()


def test_metrics_tell_what_each_loss_did() -> None:
    given = LossInputs(
        weights_T=torch.tensor([1.0, 1.0, 0.0, 2.0]),
        old_logprobs_T=torch.tensor([-1.0, -1.0, -9.0, -1.0]),
        advantages_T=torch.tensor([1.0, -1.0, 5.0, 1.0]),
        lengths_B=torch.tensor([3, 1]),
    )
    logprobs = torch.tensor([-0.5, -2.0, -1.0, -1.5])

    def metrics(loss: LossName, **config: float) -> dict[str, float]:
        settings = checked_settings(loss, config)
        return loss_metrics(loss, logprobs, loss_terms(loss, logprobs, given, settings), given, settings)

    assert metrics("cispo", clip_low_threshold=0.5)["clipped:mean"] == pytest.approx(1 / 3)
    assert metrics("dro", beta=2.0)["penalty:sum"] == pytest.approx(0.25 + 1.0 + 0.25)
    whole = metrics("gspo")
    assert whole["sequence_ratio:min"] == pytest.approx(math.exp(-0.5))
    assert whole["sequence_ratio:max"] == pytest.approx(math.exp(-0.25))
    assert whole["clipped:mean"] == pytest.approx(1 / 3)  # both ratios are low; one advantage is negative
    substitute = metrics("stable_reinforce", kl_coeff=0.2)
    assert substitute["stable_reinforce_substitute:max"] == 1.0
    assert substitute["penalty:sum"] == pytest.approx(0.1 * 1.5)


@pytest.mark.parametrize(
    ("loss", "config", "word"),
    [
        ("cispo", {"beta": 0.1}, "no setting 'beta'"),
        ("cispo", {"clip_low_threshold": 5.0}, "low <= high"),
        ("gspo", {"clip_high_threshold": 0.9}, "low <= high"),
        ("gspo", {"clip_low_threshold": -1.0}, "low <= high"),
        ("dro", {"beta": -0.1}, "0 or more"),
        ("dro", {"beta": math.inf}, "finite"),
        ("stable_reinforce", {"kl_coeff": -1.0}, "0 or more"),
        ("stable_reinforce", {"kl": 1.0}, "nearest is 'kl_coeff'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    lab: Lab, loss: LossName, config: dict[str, float], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        lab.engine("llama").check_part(batch(0, [9], loss=loss, loss_config=config))
