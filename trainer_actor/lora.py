"""LoRA on megatron-core's parallel linears: many adapters in one pass, each on its own rows.

Every projection has an A and a B of its own (the semantics of Hugging Face PEFT, arXiv 2106.09685):
y += (alpha / r) * (x A^T) B^T. The matrices are views of bank rows and no parameters of the model:
backward writes their gradients into scratch rows, and the engine decides what becomes of them.

A pass holds the rows of each adapter end to end, in the order of their slots. Two ways to multiply:
`SegmentedPass`, one adapter after the other on views cut to r: for a pass of one adapter,
and the reference; `GroupedPass`, all adapters in one `grouped_mm` at the bank's rank, straight from
the bank. The scale is applied to x A^T in float32 and rounded once, so both round alike.

Legend: T = positions of the pass, t = of one adapter, k = projections of a site, R = rank of the
bank, r = rank of an adapter up to the next multiple of 8, G = slots from the lowest to the highest
in the pass, I/O = inputs/outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from .pass_frame import PassFrame
from .row_layout import Projection, RowLayout, Section, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSegment:
    """Rows start:stop of a pass belong to the adapter in `slot`. sections: those it trains.

    width: r. Its padding is zero and yields zero; without it a rank of 1 would go through other
    kernels, with other bits, than in a pass of several adapters.
    gradients [N], float32: a scratch row that backward adds to; None when none are wanted.
    """

    slot: int
    start: int
    stop: int
    width: int
    scale: float
    sections: tuple[Section, ...]
    gradients: Tensor | None


class LoraPass(ABC):
    """The adapters of one pass. weights: the bank, [slots, N]."""

    def __init__(self, layout: RowLayout, weights: Tensor, segments: Sequence[LoraSegment]) -> None:
        self.rank = layout.rank
        self.weights = weights
        self.segments = tuple(segments)
        # Gives the first linear's output a graph although the base model has nothing to train.
        self.anchor = torch.zeros((), requires_grad=True)

    def trains(self, site: Site) -> bool:
        return any(site.section in segment.sections for segment in self.segments)

    @abstractmethod
    def add(self, site: Site, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        """Add every adapter's part to y in place; return what `backward` needs again."""

    @abstractmethod
    def backward(self, site: Site, x_TI: Tensor, saved: list[Tensor], dy_TO: Tensor) -> Tensor:
        """Add to the segments' gradients; return the gradient of x [T, I]."""


class SegmentedPass(LoraPass):
    def add(self, site: Site, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        saved = []
        for segment in self._segments(site):
            row, r, rows = self.weights[segment.slot], segment.width, slice(segment.start, segment.stop)
            mid_tkr = (x_TI[rows] @ stacked_a(row, site, self.rank, r).t()).mul_(segment.scale)
            for mid_tr, projection in zip(torch.split(mid_tkr, r, dim=1), site.projections, strict=True):
                delta = mid_tr @ b_matrix(row, projection, self.rank, r).t()
                _add_columns(y_TO[rows], projection, delta)
            saved.append(mid_tkr)
        return saved

    def backward(self, site: Site, x_TI: Tensor, saved: list[Tensor], dy_TO: Tensor) -> Tensor:
        segments = self._segments(site)
        covered = sum(segment.stop - segment.start for segment in segments) == len(x_TI)
        dx_TI = torch.empty_like(x_TI) if covered else torch.zeros_like(x_TI)
        for segment, mid_tkr in zip(segments, saved, strict=True):
            rows = slice(segment.start, segment.stop)
            dx_TI[rows] = self._backward_segment(site, segment, x_TI[rows], mid_tkr, dy_TO[rows])
        return dx_TI

    def _backward_segment(
        self, site: Site, segment: LoraSegment, x_tI: Tensor, mid_tkr: Tensor, dy_tO: Tensor
    ) -> Tensor:
        row, r, gradients = self.weights[segment.slot], segment.width, segment.gradients
        dmid_tkr = torch.empty_like(mid_tkr)
        parts = zip(torch.split(mid_tkr, r, 1), torch.split(dmid_tkr, r, 1), site.projections, strict=True)
        for mid_tr, dmid_tr, projection in parts:
            dy = _columns(dy_tO, projection)
            dmid_tr.copy_(dy @ b_matrix(row, projection, self.rank, r))
            if gradients is not None:
                b_matrix(gradients, projection, self.rank, r).add_(dy.t() @ mid_tr)
        dmid_tkr.mul_(segment.scale)
        if gradients is not None:
            da_krI = (dmid_tkr.t() @ x_tI).view(-1, r, site.inputs)
            a_matrices(gradients, site, self.rank)[:, :r].add_(da_krI)
        return dmid_tkr @ stacked_a(row, site, self.rank, r)

    def _segments(self, site: Site) -> list[LoraSegment]:
        return [segment for segment in self.segments if site.section in segment.sections]


class GroupedPass(LoraPass):
    """Every slot between the lowest and the highest is a group; slots that take no part have no rows.

    An adapter that does not train a site has zeros there, so its rows and gradients get zeros.
    """

    def __init__(self, layout: RowLayout, weights: Tensor, segments: Sequence[LoraSegment]) -> None:
        super().__init__(layout, weights, segments)
        self._low = self.segments[0].slot
        stops = {segment.slot: segment.stop for segment in self.segments}
        assert list(stops) == sorted(stops), "segments are in the order of their slots, each slot once"
        ends, end = [], 0
        for slot in range(self._low, self.segments[-1].slot + 1):
            end = stops.get(slot, end)
            ends.append(end)
        device = weights.device
        self._bank = weights[self._low : self._low + len(ends)]
        self._ends = torch.tensor(ends, dtype=torch.int32, device=device)
        spans = torch.tensor([segment.stop - segment.start for segment in self.segments])
        scales = torch.tensor([segment.scale for segment in self.segments], dtype=torch.float32)
        self._scale_T1 = scales.repeat_interleave(spans)[:, None].to(device)

    def add(self, site: Site, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        mid_TkR = self._scaled(self._grouped(x_TI, self._a(site).transpose(1, 2)))
        for mid_TR, projection in zip(torch.split(mid_TkR, self.rank, dim=1), site.projections, strict=True):
            _add_columns(y_TO, projection, self._grouped(mid_TR, self._b(projection).transpose(1, 2)))
        return [mid_TkR]

    def backward(self, site: Site, x_TI: Tensor, saved: list[Tensor], dy_TO: Tensor) -> Tensor:
        (mid_TkR,) = saved
        dmids = []
        for mid_TR, projection in zip(torch.split(mid_TkR, self.rank, dim=1), site.projections, strict=True):
            dy = _columns(dy_TO, projection)
            dmids.append(self._grouped(dy, self._b(projection)))
            db_GOR = self._grouped(dy.t(), mid_TR)
            for segment in self.segments:
                if segment.gradients is not None:
                    target = b_matrix(segment.gradients, projection, self.rank, self.rank)
                    target.add_(db_GOR[segment.slot - self._low])
        dmid_TkR = self._scaled(torch.cat(dmids, dim=1))
        da_GkRI = self._grouped(dmid_TkR.t(), x_TI).view(len(self._bank), -1, self.rank, site.inputs)
        for segment in self.segments:
            if segment.gradients is not None:
                a_matrices(segment.gradients, site, self.rank).add_(da_GkRI[segment.slot - self._low])
        return self._grouped(dmid_TkR, self._a(site))

    def _grouped(self, left: Tensor, right: Tensor) -> Tensor:
        return F.grouped_mm(left, right, offs=self._ends)

    def _scaled(self, mid_TkR: Tensor) -> Tensor:
        # A float32 factor would leave a float32 result: round back to the model's type.
        return (mid_TkR * self._scale_T1).to(mid_TkR.dtype)

    def _a(self, site: Site) -> Tensor:
        """[G, k * R, I], strided over the bank."""
        size = len(site.projections) * self.rank * site.inputs
        rows = self._bank[:, site.a_offset : site.a_offset + size]
        return rows.view(len(rows), -1, site.inputs)

    def _b(self, projection: Projection) -> Tensor:
        """[G, O, R], strided over the bank."""
        size = projection.outputs * self.rank
        rows = self._bank[:, projection.b_offset : projection.b_offset + size]
        return rows.view(len(rows), -1, self.rank)


def a_matrices(row_N: Tensor, site: Site, bank_rank: int) -> Tensor:
    """The A's of a site as a view [k, R, I]."""
    size = len(site.projections) * bank_rank * site.inputs
    return row_N[site.a_offset : site.a_offset + size].view(-1, bank_rank, site.inputs)


def stacked_a(row_N: Tensor, site: Site, bank_rank: int, width: int) -> Tensor:
    """The A's of a site cut to r, [k * r, I]; a copy where they do not lie end to end."""
    return a_matrices(row_N, site, bank_rank)[:, :width].reshape(-1, site.inputs)


def b_matrix(row_N: Tensor, projection: Projection, bank_rank: int, width: int) -> Tensor:
    """A projection's B cut to r, as a view [O, r]."""
    size = projection.outputs * bank_rank
    return row_N[projection.b_offset : projection.b_offset + size].view(-1, bank_rank)[:, :width]


def _columns(y_TO: Tensor, projection: Projection) -> Tensor:
    """The projection's own columns of a fused linear, [T, outputs]; a copy if they are interleaved."""
    return _view_columns(y_TO, projection).reshape(-1, projection.outputs)


def _add_columns(y_TO: Tensor, projection: Projection, delta: Tensor) -> None:
    columns = _view_columns(y_TO, projection)
    columns.add_(delta.view(columns.shape))


def _view_columns(y_TO: Tensor, projection: Projection) -> Tensor:
    """[T, groups, columns of the projection]."""
    grouped = y_TO.view(len(y_TO), projection.groups, -1)
    return grouped[:, :, projection.start : projection.stop]


class _AddLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, _anchor: Tensor, site: Site, lora: LoraPass) -> Tensor:
        saved = lora.add(site, x.flatten(0, -2), y.view(-1, site.outputs))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x)
        ctx.site, ctx.lora, ctx.mids = site, lora, saved
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        dx = ctx.lora.backward(ctx.site, x.flatten(0, -2), ctx.mids, dy.reshape(-1, ctx.site.outputs))
        ctx.mids = None
        return dx.view_as(x), dy, None, None, None


def add_lora(frame: PassFrame, site: Site, x: Tensor, y: Tensor, *, own_y: bool) -> Tensor:
    """y plus what the adapters of the running pass add at this site; in place if y is our own."""
    lora = frame.lora
    if lora is None or not lora.trains(site):
        return y
    y = y if own_y else y.clone()
    result: Tensor = _AddLora.apply(x, y, lora.anchor, site, lora)  # type: ignore[no-untyped-call]
    return result


class LoraColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """qkv and fc1. Stands in the layer spec; the backbone tells each one its site."""

    def attach(self, frame: PassFrame, site: Site) -> None:
        assert (site.inputs, site.outputs) == (self.input_size, self.output_size)
        self._frame, self._site = frame, site

    def forward(self, input_: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_, *args, **kwargs)
        return add_lora(self._frame, self._site, input_, output, own_y=True), bias


class LoraRowParallelLinear(RowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """proj and fc2."""

    def attach(self, frame: PassFrame, site: Site) -> None:
        assert (site.inputs, site.outputs) == (self.input_size, self.output_size)
        self._frame, self._site = frame, site

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        # The reduction over ranks hands out a view of its own, which must not be changed in place.
        return add_lora(self._frame, self._site, input_, output, own_y=False), bias
