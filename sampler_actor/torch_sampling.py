"""From logits to tokens: temperature, top_k, top_p, and a stream of randomness per sequence.

A token is the inverse of the cumulative distribution at one uniform number. The numbers come from
the sequence's own generator on the CPU, one per token, so they are the same whatever its
neighbours, the device or a preemption.

Legend: N = rows, V = vocabulary, W = candidates looked at, K = tokens drawn for one row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .engine import Choices, Job

_DRAWN_AT_ONCE = 32
# Keeps u * total below the total after rounding, so that the last token of weight 0 never wins.
_BELOW_ONE = 1.0 - 2.0**-40
# A nucleus is looked for among so many likeliest tokens before the whole vocabulary is sorted.
_LIKELY = 1024
_NO_CHOICES = Choices((), ())


class Uniforms:
    """Numbers in [0, 1), the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: list[float] = []

    def next(self) -> float:
        if not self._drawn:
            block = torch.rand(_DRAWN_AT_ONCE, generator=self._generator, dtype=torch.float64)
            self._drawn = block.flip(0).tolist()
        return self._drawn.pop()


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row is to be sampled. uniform is unused when the temperature is 0.

    topk: how many of the likeliest tokens to tell, whatever top_k and top_p leave to be drawn.
    """

    temperature: float
    top_k: int
    top_p: float
    uniform: float
    topk: int = 0


class Sampled(NamedTuple):
    """One row's token, its logprob, and the likeliest tokens."""

    token: int
    logprob: float
    choices: Choices


def draw_of(job: Job, uniforms: Uniforms) -> Draw:
    uniform = uniforms.next() if job.temperature else 0.0
    return Draw(job.temperature, job.top_k, job.top_p, uniform, job.topk)


def sample(logits_NV: Tensor, draws: Sequence[Draw]) -> list[Sampled]:
    """One token per row, and log_softmax(logits / temperature) before top_k and top_p.

    A row whose logits are not finite gets a logprob of NaN.
    """
    temperatures = [draw.temperature or 1.0 for draw in draws]
    if any(temperature != 1.0 for temperature in temperatures):
        logits_NV = logits_NV / logits_NV.new_tensor(temperatures)[:, None]
    logprobs_NV = logits_NV.log_softmax(-1)
    tokens_N = logprobs_NV.argmax(-1)
    random = [i for i, draw in enumerate(draws) if draw.temperature]
    if random:
        rows = torch.tensor(random, device=logits_NV.device)
        tokens_N[rows] = _draw(logprobs_NV[rows].exp(), [draws[i] for i in random])
    logprobs_N = logprobs_NV.gather(-1, tokens_N[:, None]).squeeze(-1)
    choices = _choices(logprobs_NV, [draw.topk for draw in draws])
    return list(map(Sampled, tokens_N.tolist(), logprobs_N.tolist(), choices))


def pick(probs_NV: Tensor, uniforms_NK: Tensor) -> Tensor:
    """Tokens [N, K] by inverting each row's cumulative distribution. Weights need not add up to 1."""
    # Summed in float64: in float32 the tail of a large vocabulary would be off by whole tokens.
    cumulative_NV = probs_NV.double().cumsum(-1)
    reached_NK = uniforms_NK * cumulative_NV[:, -1:] * _BELOW_ONE
    tokens_NK = torch.searchsorted(cumulative_NV, reached_NK, right=True)
    # Only a row of NaN finds no token at all.
    return tokens_NK.clamp(max=probs_NV.shape[-1] - 1)


def _choices(logprobs_NV: Tensor, wanted: Sequence[int]) -> list[Choices]:
    if not any(wanted):
        return [_NO_CHOICES] * len(wanted)
    likeliest = logprobs_NV.topk(max(wanted))
    rows = zip(wanted, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [Choices(tuple(tokens[:k]), tuple(logprobs[:k])) for k, tokens, logprobs in rows]


def _draw(probs_NV: Tensor, draws: Sequence[Draw]) -> Tensor:
    filtered = [i for i, draw in enumerate(draws) if draw.top_k > 0 or draw.top_p < 1.0]
    if filtered:
        rows = torch.tensor(filtered, device=probs_NV.device)
        probs_NV[rows] = _filtered(probs_NV[rows], [draws[i] for i in filtered])
    uniforms = [[draw.uniform] for draw in draws]
    uniforms_N1 = torch.tensor(uniforms, dtype=torch.float64, device=probs_NV.device)
    return pick(probs_NV, uniforms_N1).squeeze(-1)


def _filtered(probs_NV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The same weights, zero outside top_k and then outside the nucleus of what top_k left."""
    vocabulary, device = probs_NV.shape[-1], probs_NV.device
    top_k_N1 = torch.tensor([[d.top_k if d.top_k > 0 else vocabulary] for d in draws], device=device)
    # In float32 a sum may fall short of the whole: top_p 1 must keep everything all the same.
    top_p_N1 = probs_NV.new_tensor([[d.top_p if d.top_p < 1.0 else math.inf] for d in draws])
    sums_N1 = probs_NV.sum(-1, keepdim=True)
    likely_NW, tokens_NW = probs_NV.topk(min(_LIKELY, vocabulary))
    # What lies beyond the likeliest matters unless top_k cuts before, or the nucleus ends before.
    reach_N1 = likely_NW.sum(-1, keepdim=True)
    enough_N1 = (top_k_N1 <= likely_NW.shape[-1]) | (reach_N1 >= top_p_N1 * sums_N1)
    if not bool(enough_N1.all()):
        likely_NW, tokens_NW = probs_NV.sort(descending=True)
    kept_NW = likely_NW * (torch.arange(likely_NW.shape[-1], device=device) < top_k_N1)
    whole_N1 = torch.where(top_k_N1 < vocabulary, kept_NW.sum(-1, keepdim=True), sums_N1)
    before_NW = kept_NW.cumsum(-1) - kept_NW
    kept_NW = kept_NW * (before_NW < top_p_N1 * whole_N1)
    return torch.zeros_like(probs_NV).scatter(-1, tokens_NW, kept_NW)
