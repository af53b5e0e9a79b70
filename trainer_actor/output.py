"""The last layer, log p of the targets and the losses' way back, in chunks: logits of all positions
never exist together.

Losses are sums of parts that depend on one position's log p each. So a chunk's logits are used for
everything at once, log p, loss and gradient, and none is computed twice; a loss over whole sequences
would need a second walk. Only positions whose log p has a gradient are walked back. A chunk never
holds positions of two adapters, so the products here have the same shapes, and give the same
bits, whoever else is in the pass.

Legend: t = positions of an adapter, C = of a chunk, K = of those with a gradient, H = hidden,
V = vocabulary, r = rank of an adapter up to the next multiple of 8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora import LoraSegment, add_product
from .row_layout import RowLayout, Site
from .row_views import SiteViews

# Rows of the adapter and their log p -> parts of the loss, and the loss's derivative in each log p.
Loss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class OutputHead:
    """weight [V, H]: frozen. site: where adapters on the unembedding have their A and B."""

    weight_VH: Tensor
    site: Site
    chunk: int


def output_head(weight_VH: Tensor, layout: RowLayout, chunk: int) -> OutputHead:
    site = next(site for site in layout.sites if site.kind == "unembed")
    return OutputHead(weight_VH, site, chunk)


@torch.no_grad()
def run_head(
    head: OutputHead,
    segment: LoraSegment,
    hidden_tH: Tensor,
    targets_t: Tensor,
    loss: Loss,
    dhidden_tH: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """log p [t] and parts of the loss [t], float32, of one adapter's positions.

    dhidden: zeros to be filled with the gradient of hidden, while the adapter's own on the
    unembedding is added to its scratch row; None for no gradients.
    """
    layer = _Layer(head, segment)
    logprobs_t = torch.empty(len(hidden_tH), dtype=torch.float32, device=hidden_tH.device)
    terms_t = torch.empty_like(logprobs_t)
    for start in range(0, len(hidden_tH), head.chunk):
        rows = slice(start, start + head.chunk)
        logits_CV = layer.logits(hidden_tH[rows])
        normalizer_C = torch.logsumexp(logits_CV, dim=1)
        chosen_C = logits_CV.gather(1, targets_t[rows, None]).squeeze(1)
        logprobs_t[rows] = chosen_C - normalizer_C
        terms_t[rows], slopes_C = loss(rows, logprobs_t[rows])
        if dhidden_tH is not None and len(kept_K := slopes_C.nonzero().squeeze(1)):
            # Here logits become, in their own memory, the loss's gradient in them:
            # d log p_t / d logits = onehot(t) - softmax(logits).
            if len(kept_K) < len(slopes_C):
                logits_CV, normalizer_C, slopes_C = logits_CV[kept_K], normalizer_C[kept_K], slopes_C[kept_K]
            dlogits_KV = logits_CV.sub_(normalizer_C[:, None]).exp_().mul_(-slopes_C[:, None])
            dlogits_KV.scatter_add_(1, targets_t[start + kept_K, None], slopes_C[:, None])
            dhidden_tH[start + kept_K] = layer.backward(hidden_tH[start + kept_K], dlogits_KV)
    return logprobs_t, terms_t


class _Layer:
    """The output layer as one adapter sees it."""

    def __init__(self, head: OutputHead, segment: LoraSegment) -> None:
        self._weight_VH = head.weight_VH
        self._site = head.site
        self._segment = segment
        self._adapter = segment.weights.at(head.site) if head.site.section in segment.sections else None

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """[C, V] in float32."""
        logits_CV = hidden_CH @ self._weight_VH.t()
        if self._adapter is not None:
            add_product(logits_CV, self._mid(hidden_CH, self._adapter), self._adapter.b_Or[0].t())
        return logits_CV.float()

    def backward(self, hidden_KH: Tensor, dlogits_KV: Tensor) -> Tensor:
        """Gradient of hidden [K, H]; the adapter's own is added to its scratch row."""
        dlogits_KV = dlogits_KV.to(hidden_KH.dtype)
        dhidden_KH = dlogits_KV @ self._weight_VH
        if self._adapter is not None:
            dhidden_KH += self._backward_lora(hidden_KH, dlogits_KV, self._adapter)
        return dhidden_KH

    def _backward_lora(self, hidden_KH: Tensor, dlogits_KV: Tensor, adapter: SiteViews) -> Tensor:
        assert self._segment.gradients is not None
        gradients = self._segment.gradients.at(self._site)
        dmid_Kr = (dlogits_KV @ adapter.b_Or[0]).mul_(self._segment.scale)
        add_product(gradients.b_Or[0], dlogits_KV.t(), self._mid(hidden_KH, adapter))
        add_product(gradients.a_krI[0], dmid_Kr.t(), hidden_KH)
        return dmid_Kr @ adapter.a_krI[0]

    def _mid(self, hidden_KH: Tensor, adapter: SiteViews) -> Tensor:
        return (hidden_KH @ adapter.a_krI[0].t()).mul_(self._segment.scale)
