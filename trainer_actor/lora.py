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
from .row_layout import Projection, Section, Site
from .row_views import RowViews


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSegment:
    """Rows start:stop of a pass belong to the adapter in `slot`. sections: those it trains.

    weights, gradients: views of its bank row and of a float32 scratch row that backward adds to (None
    when no gradients are wanted), both r wide. The padding in them is zero and yields zero; without
    it a rank of 1 would go through other kernels, with other bits, than in a pass of several adapters.
    """

    slot: int
    start: int
    stop: int
    scale: float
    sections: tuple[Section, ...]
    weights: RowViews
    gradients: RowViews | None


class LoraPass(ABC):
    """The adapters of one pass."""

    def __init__(self, segments: Sequence[LoraSegment]) -> None:
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
            weights, rows = segment.weights.at(site), slice(segment.start, segment.stop)
            mid_tkr = (x_TI[rows] @ weights.stacked_a().t()).mul_(segment.scale)
            for mid_tr, b_Or, projection in zip(
                _each(mid_tkr, site), weights.b_Or, site.projections, strict=True
            ):
                _add_product_to_columns(y_TO[rows], projection, mid_tr, b_Or.t())
            saved.append(mid_tkr)
        return saved

    def backward(self, site: Site, x_TI: Tensor, saved: list[Tensor], dy_TO: Tensor) -> Tensor:
        segments = self._segments(site)
        parts = [
            self._backward_segment(site, segment, x_TI, mid_tkr, dy_TO)
            for segment, mid_tkr in zip(segments, saved, strict=True)
        ]
        if len(parts) == 1 and len(parts[0]) == len(x_TI):
            return parts[0]
        dx_TI = torch.zeros_like(x_TI)
        for segment, part_tI in zip(segments, parts, strict=True):
            dx_TI[segment.start : segment.stop] = part_tI
        return dx_TI

    def _backward_segment(
        self, site: Site, segment: LoraSegment, x_TI: Tensor, mid_tkr: Tensor, dy_TO: Tensor
    ) -> Tensor:
        rows = slice(segment.start, segment.stop)
        weights = segment.weights.at(site)
        gradients = segment.gradients.at(site) if segment.gradients is not None else None
        dmid_tkr = torch.empty_like(mid_tkr)
        mids, dmids = _each(mid_tkr, site), _each(dmid_tkr, site)
        for index, projection in enumerate(site.projections):
            dy = _columns(dy_TO[rows], projection)
            torch.mm(dy, weights.b_Or[index], out=dmids[index])
            if gradients is not None:
                add_product(gradients.b_Or[index], dy.t(), mids[index])
        dmid_tkr.mul_(segment.scale)
        if gradients is not None:
            gradients.a_krI.add_((dmid_tkr.t() @ x_TI[rows]).view_as(gradients.a_krI))
        return dmid_tkr @ weights.stacked_a()

    def _segments(self, site: Site) -> list[LoraSegment]:
        return [segment for segment in self.segments if site.section in segment.sections]


class GroupedPass(LoraPass):
    """Every slot between the lowest and the highest is a group; slots that take no part have no rows.

    An adapter that does not train a site has zeros there, so its rows and gradients get zeros.
    """

    def __init__(self, bank: Tensor, bank_rank: int, segments: Sequence[LoraSegment]) -> None:
        """bank: the weights of all slots [slots, N]."""
        super().__init__(segments)
        self._rank = bank_rank
        self._low = self.segments[0].slot
        stops = {segment.slot: segment.stop for segment in self.segments}
        assert list(stops) == sorted(stops), "segments are in the order of their slots, each slot once"
        ends, end = [], 0
        for slot in range(self._low, self.segments[-1].slot + 1):
            end = stops.get(slot, end)
            ends.append(end)
        self._bank = bank[self._low : self._low + len(ends)]
        self._ends = torch.tensor(ends, dtype=torch.int32, device=bank.device)
        spans = torch.tensor([segment.stop - segment.start for segment in self.segments])
        scales = torch.tensor([segment.scale for segment in self.segments], dtype=torch.float32)
        self._scale_T1 = scales.repeat_interleave(spans)[:, None].to(bank.device)

    def add(self, site: Site, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        mid_TkR = self._scaled(self._grouped(x_TI, self._a(site).transpose(1, 2)))
        for mid_TR, projection in zip(_each(mid_TkR, site), site.projections, strict=True):
            _add_columns(y_TO, projection, self._grouped(mid_TR, self._b(projection).transpose(1, 2)))
        return [mid_TkR]

    def backward(self, site: Site, x_TI: Tensor, saved: list[Tensor], dy_TO: Tensor) -> Tensor:
        (mid_TkR,) = saved
        dmids, dbs = [], []
        for mid_TR, projection in zip(_each(mid_TkR, site), site.projections, strict=True):
            dy = _columns(dy_TO, projection)
            dmids.append(self._grouped(dy, self._b(projection)))
            dbs.append(self._grouped(dy.t(), mid_TR))
        dmid_TkR = self._scaled(torch.cat(dmids, dim=1))
        da_GkRI = self._grouped(dmid_TkR.t(), x_TI).view(len(self._bank), -1, self._rank, site.inputs)
        for segment in self.segments:
            if segment.gradients is not None:
                target, group = segment.gradients.at(site), segment.slot - self._low
                width = target.a_krI.shape[1]
                target.a_krI.add_(da_GkRI[group, :, :width])
                for b_Or, db_GOR in zip(target.b_Or, dbs, strict=True):
                    b_Or.add_(db_GOR[group, :, :width])
        return self._grouped(dmid_TkR, self._a(site))

    def _grouped(self, left: Tensor, right: Tensor) -> Tensor:
        return F.grouped_mm(left, right, offs=self._ends)

    def _scaled(self, mid_TkR: Tensor) -> Tensor:
        # A float32 factor would leave a float32 result: round back to the model's type.
        return (mid_TkR * self._scale_T1).to(mid_TkR.dtype)

    def _a(self, site: Site) -> Tensor:
        """[G, k * R, I], strided over the bank."""
        size = len(site.projections) * self._rank * site.inputs
        rows = self._bank[:, site.a_offset : site.a_offset + size]
        return rows.view(len(rows), -1, site.inputs)

    def _b(self, projection: Projection) -> Tensor:
        """[G, O, R], strided over the bank."""
        size = projection.outputs * self._rank
        rows = self._bank[:, projection.b_offset : projection.b_offset + size]
        return rows.view(len(rows), -1, self._rank)


def add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right. In float32 at once, which gives the same bits as `grouped_mm` and then an
    addition (measured); in bfloat16 the product is rounded first, as there."""
    if target.dtype is left.dtype is torch.float32:
        target.addmm_(left, right)
    else:
        target.add_(left @ right)


def _each(mid_Tkr: Tensor, site: Site) -> tuple[Tensor, ...]:
    """The columns of each projection, [T, r]."""
    if len(site.projections) == 1:
        return (mid_Tkr,)
    return torch.split(mid_Tkr, mid_Tkr.shape[1] // len(site.projections), dim=1)


def _columns(y_TO: Tensor, projection: Projection) -> Tensor:
    """The projection's own columns of a fused linear, [T, outputs]; a copy if they are interleaved."""
    return _view_columns(y_TO, projection).reshape(-1, projection.outputs)


def _add_product_to_columns(y_TO: Tensor, projection: Projection, left: Tensor, right: Tensor) -> None:
    if projection.groups == 1:
        add_product(y_TO[:, projection.start : projection.stop], left, right)
    else:
        _add_columns(y_TO, projection, left @ right)


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
