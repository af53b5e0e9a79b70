"""The last layer and log p of the targets, in chunks: logits of all positions never exist together.

Forward computes log p for every position; backward computes the logits of a chunk again, and only
for positions whose log p has a gradient. A chunk never holds positions of two adapters, so the
products here have the same shapes, and give the same bits, whoever else is in the pass.

Legend: T = positions of the pass, C = of a chunk, H = hidden, V = vocabulary,
r = rank of an adapter up to the next multiple of 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lora import LoraPass, LoraSegment, a_matrices, b_matrix, stacked_a
from .row_layout import RowLayout, Site


@dataclass(frozen=True, slots=True)
class OutputHead:
    """weight [V, H]: frozen. site: where adapters on the unembedding have their A and B."""

    weight_VH: Tensor
    site: Site
    bank_rank: int
    chunk: int


def output_head(weight_VH: Tensor, layout: RowLayout, chunk: int) -> OutputHead:
    site = next(site for site in layout.sites if site.kind == "unembed")
    return OutputHead(weight_VH, site, layout.rank, chunk)


def token_logprobs(hidden_TH: Tensor, targets_T: Tensor, head: OutputHead, lora: LoraPass) -> Tensor:
    """log p(target) at each position [T] in float32, with gradients for hidden and the adapters."""
    result: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_TH, lora.anchor, targets_T, head, lora
    )
    return result


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, _anchor: Tensor, targets_T: Tensor, head: OutputHead, lora: LoraPass
    ) -> Tensor:
        logprobs_T = torch.empty(len(hidden_TH), dtype=torch.float32, device=hidden_TH.device)
        for segment in lora.segments:
            adapter = _Adapter(head, lora, segment)
            for start in range(segment.start, segment.stop, head.chunk):
                rows = slice(start, min(start + head.chunk, segment.stop))
                logits_CV = adapter.logits(hidden_TH[rows])
                chosen_C = logits_CV.gather(1, targets_T[rows, None]).squeeze(1)
                logprobs_T[rows] = chosen_C - torch.logsumexp(logits_CV, dim=1)
        ctx.save_for_backward(hidden_TH, targets_T)
        ctx.head, ctx.lora = head, lora
        return logprobs_T

    @staticmethod
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden_TH, targets_T = ctx.saved_tensors
        dhidden_TH = torch.zeros_like(hidden_TH)
        touched = gradient_T.nonzero().squeeze(1)
        for segment in ctx.lora.segments:
            adapter = _Adapter(ctx.head, ctx.lora, segment)
            for rows_C in _within(touched, segment, ctx.head.chunk):
                dhidden_TH[rows_C] = adapter.backward(
                    hidden_TH[rows_C], targets_T[rows_C], gradient_T[rows_C]
                )
        return dhidden_TH, None, None, None, None


def _within(touched: Tensor, segment: LoraSegment, chunk: int) -> Iterator[Tensor]:
    """The touched positions of a segment, `chunk` at a time."""
    mine = touched[(touched >= segment.start) & (touched < segment.stop)]
    return (rows for rows in torch.split(mine, chunk) if len(rows))


class _Adapter:
    """The output layer as one adapter sees it."""

    def __init__(self, head: OutputHead, lora: LoraPass, segment: LoraSegment) -> None:
        self._head = head
        self._segment = segment
        self._row = lora.weights[segment.slot] if head.site.section in segment.sections else None

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """[C, V] in float32."""
        logits_CV = hidden_CH @ self._head.weight_VH.t()
        if self._row is not None:
            logits_CV += self._mid(hidden_CH, self._row) @ self._b(self._row).t()
        return logits_CV.float()

    def backward(self, hidden_CH: Tensor, targets_C: Tensor, gradient_C: Tensor) -> Tensor:
        """Gradient of hidden [C, H]; the adapter's own is added to its scratch row.

        d log p_t / d logits = onehot(t) - softmax(logits).
        """
        dlogits_CV = torch.softmax(self.logits(hidden_CH), dim=1).mul_(-gradient_C[:, None])
        dlogits_CV.scatter_add_(1, targets_C[:, None], gradient_C[:, None])
        dlogits_CV = dlogits_CV.to(hidden_CH.dtype)
        dhidden_CH = dlogits_CV @ self._head.weight_VH
        if self._row is not None:
            dhidden_CH += self._backward_lora(hidden_CH, dlogits_CV, self._row)
        return dhidden_CH

    def _backward_lora(self, hidden_CH: Tensor, dlogits_CV: Tensor, row: Tensor) -> Tensor:
        dmid_Cr = (dlogits_CV @ self._b(row)).mul_(self._segment.scale)
        gradients = self._segment.gradients
        if gradients is not None:
            self._b(gradients).add_(dlogits_CV.t() @ self._mid(hidden_CH, row))
            a_1rH = a_matrices(gradients, self._head.site, self._head.bank_rank)[:, : self._segment.width]
            a_1rH[0].add_(dmid_Cr.t() @ hidden_CH)
        return dmid_Cr @ self._a(row)

    def _mid(self, hidden_CH: Tensor, row: Tensor) -> Tensor:
        return (hidden_CH @ self._a(row).t()).mul_(self._segment.scale)

    def _a(self, row: Tensor) -> Tensor:
        return stacked_a(row, self._head.site, self._head.bank_rank, self._segment.width)

    def _b(self, row: Tensor) -> Tensor:
        return b_matrix(row, self._head.site.projections[0], self._head.bank_rank, self._segment.width)
