"""The losses: pure functions from log p to each position's part of a summed loss.

    cross_entropy         -w * lp
    importance_sampling   -ratio * A
    ppo                   -min(ratio * A, clip(ratio, low, high) * A)
    cispo                 -sg(clip(ratio, low, high)) * lp * A        (arXiv 2506.13585)
    dro                   -(lp * A - beta / 2 * (lp - q)^2)           (arXiv 2405.19107)
    gspo                  -min(s * A, clip(s, low, high) * A)         (arXiv 2507.18071, GSPO-token)
    stable_reinforce      -ratio * A + kl_coeff / 2 * (lp - q)^2      (a substitute, see below)

with lp = log p(target) under the adapter, q = log p when the token was sampled, A = advantage,
ratio = exp(lp - q), sg = no gradient goes through, and s = exp(mean(sg(lp) - q) + lp - sg(lp)): its
value is the ratio of the whole sequence, the mean being over the positions that ratio_mask counts.
Losses are sums over positions, never means. But for cross_entropy, where weights are weights and
targets may be several a position, positions of weight 0 are left out. Gradients are autograd's.

The formula of stable_reinforce is not published. In its place stands importance_sampling with a KL
penalty that holds the policy to the one that sampled. Of the estimators of KL it takes (lp - q)^2 / 2
because its gradient, (lp - q) grad lp, is in expectation over the policy's own samples that of KL
itself (arXiv 2506.09477; differentiating lp - q gives 0, and the estimator r - 1 - log r another
divergence), and because it grows with lp - q, not with exp(lp - q). Positions where nothing was
sampled (see `sampled`) have no penalty, or a prompt would be pulled towards what its padding names.

Legend: T = positions, K = targets of a position (for cross_entropy, [T] may be [T, K]), B = datums.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor

from ..bus.messages import LossName

# Losses whose parts depend on log p of their whole sequence, so that none can be had chunk by chunk.
WHOLE_SEQUENCE: frozenset[LossName] = frozenset({"gspo"})


def _none() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """weights, old_logprobs, advantages [T], float32; all but weights are empty for cross_entropy.

    ratio_mask [T], lengths [B]: for losses over whole sequences. An empty mask stands for what was sampled.
    """

    weights_T: Tensor
    old_logprobs_T: Tensor
    advantages_T: Tensor
    ratio_mask_T: Tensor = field(default_factory=_none)
    lengths_B: Tensor = field(default_factory=_none)

    def rows(self, rows: slice, datums: slice = slice(0)) -> "LossInputs":
        """Those of some positions, which are whole datums only if it says which."""
        # A slice of an empty tensor is empty.
        return LossInputs(
            weights_T=self.weights_T[rows],
            old_logprobs_T=self.old_logprobs_T[rows],
            advantages_T=self.advantages_T[rows],
            ratio_mask_T=self.ratio_mask_T[rows],
            lengths_B=self.lengths_B[datums],
        )


def loss_terms(
    loss: LossName, logprobs_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> Tensor:
    """Each position's part of the loss [T], differentiable in logprobs.

    Positions may be any of an adapter's, but whole datums for a loss of `WHOLE_SEQUENCE`.
    """
    if loss == "cross_entropy":
        return -inputs.weights_T * logprobs_T
    log_ratio_T = log_ratio(logprobs_T, inputs)
    advantages_T = inputs.advantages_T
    match loss:
        case "importance_sampling":
            gains_T = log_ratio_T.exp() * advantages_T
        case "ppo":
            gains_T = _clipped_gains(log_ratio_T.exp(), advantages_T, settings)
        case "cispo":
            gains_T = _clip(log_ratio_T.detach().exp(), settings) * logprobs_T * advantages_T
        case "dro":
            gains_T = logprobs_T * advantages_T - settings["beta"] / 2 * log_ratio_T.square()
        case "gspo":
            # The difference is 0; it gives the sequence's ratio the gradient of the position's log p.
            log_s_T = sequence_log_ratio(logprobs_T, inputs) + logprobs_T - logprobs_T.detach()
            gains_T = _clipped_gains(log_s_T.exp(), advantages_T, settings)
        case "stable_reinforce":
            penalty_T = settings["kl_coeff"] / 2 * torch.where(sampled(inputs), log_ratio_T, 0.0).square()
            gains_T = log_ratio_T.exp() * advantages_T - penalty_T
        case _:
            assert_never(loss)
    return torch.where(inputs.weights_T != 0, -gains_T, 0.0)


def terms_and_slopes(
    loss: LossName, logprobs_T: Tensor, inputs: LossInputs, settings: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """The terms [T], and the derivative of each in its own log p [T]."""
    with torch.enable_grad():
        logprobs_T = logprobs_T.detach().requires_grad_()
        terms_T = loss_terms(loss, logprobs_T, inputs, settings)
        (slopes_T,) = torch.autograd.grad(terms_T.sum(), logprobs_T)
    return terms_T.detach(), slopes_T


def log_ratio(logprobs_T: Tensor, inputs: LossInputs) -> Tensor:
    """lp - q [T]; 0 at positions left out: their q may be anything, and infinity times 0 is NaN."""
    return torch.where(inputs.weights_T != 0, logprobs_T - inputs.old_logprobs_T, 0.0)


def sampled(inputs: LossInputs) -> Tensor:
    """Whether a token was sampled there [T], as far as the numbers tell.

    Clients that send no weights fill the positions of a prompt with a q and an advantage of 0. A
    token that was sampled with probability 1 and has no advantage looks the same, and matters as little.
    """
    told_T = (inputs.old_logprobs_T != 0) | (inputs.advantages_T != 0)
    return (inputs.weights_T != 0) & told_T


def sequence_log_ratio(logprobs_T: Tensor, inputs: LossInputs) -> Tensor:
    """The mean of lp - q over the counted positions of each one's datum [T], without a gradient.

    0 where a datum counts none. Each datum is summed by itself, so others do not change its bits.
    """
    counted_T = inputs.ratio_mask_T != 0 if len(inputs.ratio_mask_T) else sampled(inputs)
    difference_T = torch.where(counted_T, logprobs_T.detach() - inputs.old_logprobs_T, 0.0).double()
    sums_B = _sums(difference_T, inputs.lengths_B)
    counts_B = _sums(counted_T.double(), inputs.lengths_B)
    means_B = sums_B / counts_B.clamp(min=1.0)
    return means_B.repeat_interleave(inputs.lengths_B, output_size=len(logprobs_T)).to(logprobs_T.dtype)


def _sums(values_T: Tensor, lengths_B: Tensor) -> Tensor:
    return torch.segment_reduce(values_T, "sum", lengths=lengths_B)


def _clip(ratio_T: Tensor, settings: Mapping[str, float]) -> Tensor:
    return ratio_T.clamp(settings["clip_low_threshold"], settings["clip_high_threshold"])


def _clipped_gains(ratio_T: Tensor, advantages_T: Tensor, settings: Mapping[str, float]) -> Tensor:
    return torch.minimum(ratio_T * advantages_T, _clip(ratio_T, settings) * advantages_T)
