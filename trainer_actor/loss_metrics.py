"""What a pass says of its loss: `name:reduction` keys, the reduction saying how parts of a batch combine.

    loss:sum, tokens:sum                 of any loss; tokens are the positions of weight other than 0
    weights:sum                          of cross_entropy
    ratio:mean, ratio:max, kl:mean       of the others: exp(lp - q), and the mean of q - lp, as all
                                         below over the positions where something was sampled
    clipped:mean                         share of positions at which clipping took the gradient away, or,
                                         for cispo, bounded the ratio
    sequence_ratio:mean, :min, :max      of gspo
    penalty:sum                          of dro and stable_reinforce: the part of the loss in (lp - q)^2,
                                         for dro over all positions, as in its definition
    stable_reinforce_substitute:max      1: the published name, not the published formula (see `losses`)

Legend: T = positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..bus.messages import LossName
from .losses import LossInputs, log_ratio, sampled, sequence_log_ratio


def loss_metrics(
    loss: LossName, logprobs_T: Tensor, terms_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> dict[str, float]:
    """All of them are finite where the terms are. Means and extremes are left out if nothing counts."""
    counted_T = inputs.weights_T != 0
    positions_T = counted_T.any(dim=1) if counted_T.ndim == 2 else counted_T
    metrics = {"loss:sum": float(terms_T.double().sum()), "tokens:sum": float(positions_T.sum())}
    if loss == "cross_entropy":
        metrics["weights:sum"] = float(inputs.weights_T.double().sum())
    elif bool((sampled_T := sampled(inputs)).any()):
        ratio_T = _finite_ratio(log_ratio(logprobs_T, inputs))[sampled_T]
        metrics["ratio:mean"] = float(ratio_T.double().mean())
        metrics["ratio:max"] = float(ratio_T.max())
        metrics["kl:mean"] = float((inputs.old_logprobs_T - logprobs_T)[sampled_T].double().mean())
        metrics |= _own_metrics(loss, ratio_T, logprobs_T, inputs, settings)
    if loss == "stable_reinforce":
        metrics["stable_reinforce_substitute:max"] = 1.0
    return metrics


def _own_metrics(
    loss: LossName, ratio_T: Tensor, logprobs_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> dict[str, float]:
    """What only some losses have; ratio: of the sampled positions alone."""
    sampled_T = sampled(inputs)
    advantages_T = inputs.advantages_T[sampled_T]
    if loss == "ppo":
        return {"clipped:mean": _without_gradient(ratio_T, advantages_T, settings)}
    if loss == "cispo":
        low, high = settings["clip_low_threshold"], settings["clip_high_threshold"]
        return {"clipped:mean": float(((ratio_T < low) | (ratio_T > high)).double().mean())}
    if loss == "gspo":
        sequence_T = _finite_ratio(sequence_log_ratio(logprobs_T, inputs))[sampled_T]
        return {
            "sequence_ratio:mean": float(sequence_T.double().mean()),
            "sequence_ratio:min": float(sequence_T.min()),
            "sequence_ratio:max": float(sequence_T.max()),
            "clipped:mean": _without_gradient(sequence_T, advantages_T, settings),
        }
    if loss == "dro":
        return {"penalty:sum": settings["beta"] / 2 * _squares(log_ratio(logprobs_T, inputs))}
    if loss == "stable_reinforce":
        return {"penalty:sum": settings["kl_coeff"] / 2 * _squares(log_ratio(logprobs_T, inputs)[sampled_T])}
    return {}


def _squares(values_T: Tensor) -> float:
    return float(values_T.double().square().sum())


def _finite_ratio(log_ratio_T: Tensor) -> Tensor:
    # Where only a bounded ratio is in the loss, one that overflows must not fail the pass.
    return log_ratio_T.exp().clamp(max=torch.finfo(log_ratio_T.dtype).max)


def _without_gradient(ratio_T: Tensor, advantages_T: Tensor, settings: Mapping[str, float]) -> float:
    above = (ratio_T > settings["clip_high_threshold"]) & (advantages_T > 0)
    below = (ratio_T < settings["clip_low_threshold"]) & (advantages_T < 0)
    return float((above | below).double().mean())
