"""cispo, dro, gspo and stable_reinforce: their formulas, their derivatives, and that they bother nobody."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loractl.bus.errors import InvalidRequest, NotFinite
from loractl.bus.loss_settings import LOSS_SETTINGS
from loractl.bus.messages import LossName
from loractl.client.datums import Batch, Packed, pack, sampled_datum
from loractl.tests.trainer_actor.compute_lab import Lab, adam, batch, begin, gradients, run, spec
from loractl.tests.trainer_actor.compute_reference import WidestLogits, plain_pass
from loractl.trainer_actor.loss_metrics import loss_metrics
from loractl.trainer_actor.loss_settings import checked_settings
from loractl.trainer_actor.losses import LossInputs, loss_terms, terms_and_slopes
from loractl.trainer_actor.passes import PassPart

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
    assert engine.copy_out(0).tokens == 39
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
