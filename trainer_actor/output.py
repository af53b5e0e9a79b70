"""The last layer, log p of the targets and the losses' way back, in chunks: logits of all positions
never exist together.

Losses are sums of parts that depend on one position's log p each. So a chunk's logits are used for
everything at once, log p, loss and gradient, and none is computed twice; for a loss over whole
sequences there is `run_head_twice`. Only positions whose log p has a gradient are walked back. A
chunk never holds positions of two adapters, so the products here have the same shapes, and give the
same bits, whoever else is in the pass.

Targets are [t], or [t, K] for several of one position; what is computed per target has their shape.

Legend: t = positions of an adapter, C = of a chunk, D = of those with a derivative, K = targets of a
position, H = hidden, V = vocabulary, r = rank of an adapter up to the next multiple of 8.
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
# The same for all rows of the adapter at once.
WholeLoss = Callable[[Tensor], tuple[Tensor, Tensor]]


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
    """log p and parts of the loss, float32, in the shape of targets, of one adapter's positions.

    dhidden: zeros to be filled with the gradient of hidden, while the adapter's own on the
    unembedding is added to its scratch row; None for no gradients.
    """
    layer = _Layer(head, segment)
    logprobs_t = torch.empty(targets_t.shape, dtype=torch.float32, device=hidden_tH.device)
    terms_t = torch.empty_like(logprobs_t)
    for start in range(0, len(hidden_tH), head.chunk):
        rows = slice(start, start + head.chunk)
        targets_CK = _columns(targets_t[rows])
        logits_CV = layer.logits(hidden_tH[rows])
        normalizer_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
        _columns(logprobs_t[rows]).copy_(logits_CV.gather(1, targets_CK) - normalizer_C1)
        terms_t[rows], slopes_t = loss(rows, logprobs_t[rows])
        slopes_CK = _columns(slopes_t)
        if dhidden_tH is not None and len(kept_D := slopes_CK.any(dim=1).nonzero().squeeze(1)):
            # Here logits become, in their own memory, the loss's gradient in them:
            # d log p_t / d logits = onehot(t) - softmax(logits).
            if len(kept_D) < len(slopes_CK):
                logits_CV, normalizer_C1, slopes_CK = (
                    logits_CV[kept_D],
                    normalizer_C1[kept_D],
                    slopes_CK[kept_D],
                )
            dlogits_DV = logits_CV.sub_(normalizer_C1).exp_().mul_(-slopes_CK.sum(dim=1, keepdim=True))
            dlogits_DV.scatter_add_(1, targets_CK[kept_D], slopes_CK)
            dhidden_tH[start + kept_D] = layer.backward(hidden_tH[start + kept_D], dlogits_DV)
    return logprobs_t, terms_t


def run_head_twice(
    head: OutputHead,
    segment: LoraSegment,
    hidden_tH: Tensor,
    targets_t: Tensor,
    loss: WholeLoss,
    dhidden_tH: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `run_head`, for a loss whose parts depend on log p of other positions as well.

    The first walk finds log p of all; the second goes back, over positions with a derivative only.
    """
    logprobs_t, _ = run_head(head, segment, hidden_tH, targets_t, _no_loss, None)
    terms_t, slopes_t = loss(logprobs_t)
    if dhidden_tH is not None and len(kept_D := slopes_t.nonzero().squeeze(1)):
        terms_D, slopes_D = terms_t[kept_D], slopes_t[kept_D]
        dhidden_DH = torch.zeros_like(hidden_tH[kept_D])
        run_head(
            head,
            segment,
            hidden_tH[kept_D],
            targets_t[kept_D],
            lambda rows, _: (terms_D[rows], slopes_D[rows]),
            dhidden_DH,
        )
        dhidden_tH[kept_D] = dhidden_DH
    return logprobs_t, terms_t


def _no_loss(_: slice, logprobs_C: Tensor) -> tuple[Tensor, Tensor]:
    nothing_C = torch.zeros_like(logprobs_C)
    return nothing_C, nothing_C


def _columns(values_t: Tensor) -> Tensor:
    """A view [t, K] of what is [t] (K is 1) or [t, K]."""
    return values_t if values_t.ndim == 2 else values_t[:, None]


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

    def backward(self, hidden_DH: Tensor, dlogits_DV: Tensor) -> Tensor:
        """Gradient of hidden [D, H]; the adapter's own is added to its scratch row."""
        dlogits_DV = dlogits_DV.to(hidden_DH.dtype)
        dhidden_DH = dlogits_DV @ self._weight_VH
        if self._adapter is not None:
            dhidden_DH += self._backward_lora(hidden_DH, dlogits_DV, self._adapter)
        return dhidden_DH

    def _backward_lora(self, hidden_DH: Tensor, dlogits_DV: Tensor, adapter: SiteViews) -> Tensor:
        assert self._segment.gradients is not None
        gradients = self._segment.gradients.at(self._site)
        dmid_Dr = (dlogits_DV @ adapter.b_Or[0]).mul_(self._segment.scale)
        add_product(gradients.b_Or[0], dlogits_DV.t(), self._mid(hidden_DH, adapter))
        add_product(gradients.a_krI[0], dmid_Dr.t(), hidden_DH)
        return dmid_Dr @ adapter.a_krI[0]

    def _mid(self, hidden_DH: Tensor, adapter: SiteViews) -> Tensor:
        return (hidden_DH @ adapter.a_krI[0].t()).mul_(self._segment.scale)
