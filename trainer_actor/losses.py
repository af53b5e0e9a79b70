"""The losses: pure functions from log p to each position's part of a summed loss.

    cross_entropy         -w * lp
    importance_sampling   -ratio * A
    ppo                   -min(ratio * A, clip(ratio, low, high) * A)

with lp = log p(target) under the adapter, q = log p when the token was sampled, A = advantage and
ratio = exp(lp - q). Losses are sums over positions, never means. For the last two, positions of
weight 0 are left out, and the thresholds bound the ratio itself (0.8 and 1.2, not an epsilon).
Gradients are autograd's.

Legend: T = positions.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bus.errors import InvalidRequest
from ..bus.messages import LossName

DEFAULTS: Mapping[LossName, Mapping[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """weights, old_logprobs, advantages [T], float32; the last two are empty for cross_entropy."""

    weights_T: Tensor
    old_logprobs_T: Tensor
    advantages_T: Tensor

    def rows(self, rows: slice) -> "LossInputs":
        # A slice of an empty tensor is empty.
        return LossInputs(
            weights_T=self.weights_T[rows],
            old_logprobs_T=self.old_logprobs_T[rows],
            advantages_T=self.advantages_T[rows],
        )


def checked_settings(loss: LossName, config: Mapping[str, float]) -> dict[str, float]:
    """The loss's settings with defaults filled in.

    Raises:
        InvalidRequest: a setting that this loss does not have, or thresholds that make no range.
    """
    defaults = DEFAULTS[loss]
    for key, value in config.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)
            known = f"the nearest is {near[0]!r}" if near else "it has none"
            raise InvalidRequest(f"{loss} has no setting {key!r}; {known}")
        if not math.isfinite(value):
            raise InvalidRequest(f"{key} is {value}; it must be a finite number")
    settings = {**defaults, **config}
    if loss == "ppo" and not 0 <= settings["clip_low_threshold"] <= settings["clip_high_threshold"]:
        raise InvalidRequest(
            "clip_low_threshold and clip_high_threshold bound the ratio: 0 <= low <= high, "
            f"and not {settings['clip_low_threshold']} and {settings['clip_high_threshold']}"
        )
    return settings


def loss_terms(
    loss: LossName, logprobs_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> Tensor:
    """Each position's part of the loss [T], differentiable in logprobs."""
    if loss == "cross_entropy":
        return -inputs.weights_T * logprobs_T
    ratio_T = _ratio(logprobs_T, inputs)
    terms_T = ratio_T * inputs.advantages_T
    if loss == "ppo":
        low, high = settings["clip_low_threshold"], settings["clip_high_threshold"]
        terms_T = torch.minimum(terms_T, ratio_T.clamp(low, high) * inputs.advantages_T)
    return torch.where(inputs.weights_T != 0, -terms_T, 0.0)


def terms_and_slopes(
    loss: LossName, logprobs_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """The terms [T], and the derivative of each in its own log p [T]."""
    with torch.enable_grad():
        logprobs_T = logprobs_T.detach().requires_grad_()
        terms_T = loss_terms(loss, logprobs_T, inputs, settings)
        (slopes_T,) = torch.autograd.grad(terms_T.sum(), logprobs_T)
    return terms_T.detach(), slopes_T


def loss_metrics(
    loss: LossName, logprobs_T: Tensor, terms_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> dict[str, float]:
    """`name:reduction` keys, the reduction saying how parts of a batch combine.

    tokens:sum counts positions of weight other than 0; ratio and kl are means over them, kl being
    the mean of q - lp.
    """
    counted = inputs.weights_T != 0
    tokens = int(counted.sum())
    metrics = {"loss:sum": float(terms_T.double().sum()), "tokens:sum": float(tokens)}
    if loss == "cross_entropy":
        metrics["weights:sum"] = float(inputs.weights_T.double().sum())
    elif tokens:
        ratio_T = _ratio(logprobs_T, inputs)[counted]
        metrics["ratio:mean"] = float(ratio_T.double().mean())
        metrics["ratio:max"] = float(ratio_T.max())
        metrics["kl:mean"] = float((inputs.old_logprobs_T - logprobs_T)[counted].double().mean())
        if loss == "ppo":
            metrics["clipped:mean"] = float(_clipped(ratio_T, inputs.advantages_T[counted], settings))
    return metrics


def _ratio(logprobs_T: Tensor, inputs: LossInputs) -> Tensor:
    # Positions left out get ratio 1: their q may be anything, and infinity times 0 is NaN.
    difference_T = torch.where(inputs.weights_T != 0, logprobs_T - inputs.old_logprobs_T, 0.0)
    return difference_T.exp()


def _clipped(ratio_T: Tensor, advantages_T: Tensor, settings: Mapping[str, float]) -> Tensor:
    """The share of positions at which clipping took the gradient away."""
    above = (ratio_T > settings["clip_high_threshold"]) & (advantages_T > 0)
    below = (ratio_T < settings["clip_low_threshold"]) & (advantages_T < 0)
    return (above | below).double().mean()
