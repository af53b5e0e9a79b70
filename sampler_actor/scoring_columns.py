"""From logits to what is said of a prompt: the one computation that both engines share.

vLLM's worker and the embedded engine hand in the logits of some rows, in whatever parts they have
them; `scoring` says what rows and columns are.

Legend: N = rows, V = vocabulary, W = columns, K = draws of a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine import ScoreWish
from .scoring import uniforms
from .torch_sampling import pick


def columns(
    logits_NV: Tensor, following: Sequence[int], wish: ScoreWish, first: int
) -> tuple[Tensor, Tensor]:
    """Token ids and logprobs [N, W], logprobs at temperature 1, in float32.

    following: the prompt's own next token, for each row. first: number of the first of these rows.
    """
    logits_NV = logits_NV.float()
    logprobs_NV = logits_NV.log_softmax(-1)
    device, last = logits_NV.device, first + len(logits_NV)
    parts = [torch.tensor(following, device=device)[:, None]]
    if wish.topk:
        parts.append(logprobs_NV.topk(wish.topk).indices)
    if wish.targets.shape[1]:
        # What stands for "no target" is scored as token 0, and forgotten by `scores_of`.
        parts.append(torch.tensor(wish.targets[first:last], device=device).clamp(min=0))
    if wish.alternatives:
        parts.append(_drawn(logits_NV, wish, first))
    tokens_NW = torch.cat(parts, dim=-1)
    return tokens_NW, logprobs_NV.gather(-1, tokens_NW)


def _drawn(logits_NV: Tensor, wish: ScoreWish, first: int) -> Tensor:
    if wish.temperature == 0:
        return logits_NV.argmax(-1, keepdim=True).expand(-1, wish.alternatives)
    probs_NV = (logits_NV / wish.temperature).softmax(-1)
    uniforms_NK = uniforms(wish.seed, first, len(logits_NV), wish.alternatives)
    return pick(probs_NV, torch.from_numpy(uniforms_NK).to(logits_NV.device))
