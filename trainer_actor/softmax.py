"""log p over a vocabulary and its way back, a few rows at a time.

Logits of a chunk are tens of megabytes, and a handful of elementwise operations over all of them
would each fetch them from memory again. A block of rows stays in the cache. Rows do not depend on
one another, so blocks change no bit.

Legend: C = rows of logits, D = those with a derivative, V = vocabulary, K = targets of a row.
"""

import torch
from torch import Tensor

# Elements of a block on a CPU: a megabyte, half of what a core has for itself.
_BLOCK = 1 << 18


def normalizers(logits_CV: Tensor, block: int = _BLOCK) -> Tensor:
    """log sum exp of each row [C, 1], float32."""
    result_C1 = torch.empty(len(logits_CV), 1, dtype=torch.float32, device=logits_CV.device)
    spans = _spans(logits_CV, block)
    for logits, result in zip(torch.split(logits_CV, spans), torch.split(result_C1, spans), strict=True):
        torch.logsumexp(logits.float(), dim=1, keepdim=True, out=result)
    return result_C1


def turn_into_gradient(
    logits_DV: Tensor, normalizers_D1: Tensor, targets_DK: Tensor, slopes_DK: Tensor, block: int = _BLOCK
) -> None:
    """Let logits become, in their own memory, the gradient in them of a loss whose derivative in log p
    of each target is given: d log p_t / d logits = onehot(t) - softmax(logits)."""
    sums_D1 = -slopes_DK.sum(dim=1, keepdim=True)
    spans = _spans(logits_DV, block)
    inputs = (logits_DV, normalizers_D1, sums_D1, targets_DK, slopes_DK)
    for logits, normalizer, total, targets, slopes in zip(
        *(torch.split(each, spans) for each in inputs), strict=True
    ):
        gradient = logits.float()  # logits themselves, if they are float32
        gradient.sub_(normalizer).exp_().mul_(total).scatter_add_(1, targets, slopes)
        if gradient is not logits:
            logits.copy_(gradient)


def _spans(logits_CV: Tensor, block: int) -> int:
    if logits_CV.device.type != "cpu":
        return max(1, len(logits_CV))
    return max(1, block * torch.get_num_threads() // logits_CV.shape[1])
