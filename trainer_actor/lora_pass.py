"""What many adapters add to a pass over the base model, each on its own rows, and their way back.

Every projection has an A and a B of its own (the semantics of Hugging Face PEFT, arXiv 2106.09685):
y += (alpha / r) * (x A^T) B^T. The matrices lie in the adapters' rows and are no parameters of the model:
backward gathers their gradients in scratch rows, and the engine decides what becomes of them. The scale
is applied to x A^T in float32 and rounded once.

Legend: T = positions of the pass, t = of one run, R = rank of a row, k = projections of a linear,
s = k * R, I/O = inputs/outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .linears import Linear, Projection
from .row_layout import RowLayout
from .row_views import GradientRow, RowViews, SiteViews


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSegment:
    """Rows start:stop of a pass belong to one run of an adapter.

    weights: its row. gradients: of the same layout, gathered by backward; None when none are wanted.
    """

    start: int
    stop: int
    scale: float
    weights: RowViews
    gradients: GradientRow | None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


class LoraPass(ABC):
    """The adapters of one pass."""

    def __init__(self, segments: Sequence[LoraSegment]) -> None:
        self.segments = tuple(segments)
        # Gives the first linear's output a graph although the base model has nothing to train.
        self.anchor = torch.zeros((), requires_grad=True)

    def trains(self, linear: Linear) -> bool:
        return any(segment.weights.at(linear) is not None for segment in self.segments)

    @abstractmethod
    def add(self, linear: Linear, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        """Add every adapter's part to y in place; return what `backward` needs again."""

    @abstractmethod
    def backward(
        self, linear: Linear, x_TI: Tensor, saved: Sequence[Tensor], dy_TO: Tensor, dx_TI: Tensor | None
    ) -> None:
        """Gather the segments' gradients; add to the gradient of x, unless nobody wants it."""

    def finish(self) -> None:  # noqa: B027  # nothing, where nothing was gathered elsewhere
        """After the pass: bring to the segments what `backward` gathered elsewhere."""


class SegmentedPass(LoraPass):
    """One adapter after the other. An adapter's products have the same shapes whoever else is there.

    Only the products: what else there is to do is done for all adapters of one layout together, which
    stand side by side. On a CPU a small product costs less than the Python around it.
    """

    def __init__(self, segments: Sequence[LoraSegment]) -> None:
        super().__init__(segments)
        self._blocks = [_Block(list(same)) for _, same in groupby(segments, key=_layout_of)]

    def add(self, linear: Linear, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        return [block.add(linear, x_TI[block.rows], y_TO[block.rows]) for block in self._active(linear)]

    def backward(
        self, linear: Linear, x_TI: Tensor, saved: Sequence[Tensor], dy_TO: Tensor, dx_TI: Tensor | None
    ) -> None:
        for block, mid_Ts in zip(self._active(linear), saved, strict=True):
            rows = block.rows
            block.backward(linear, x_TI[rows], mid_Ts, dy_TO[rows], None if dx_TI is None else dx_TI[rows])

    def _active(self, linear: Linear) -> list["_Block"]:
        return [block for block in self._blocks if block.layout.site(linear) is not None]


class _Block:
    """The runs of one layout. rows: theirs in the pass. T: positions of all of them."""

    def __init__(self, segments: list[LoraSegment]) -> None:
        self.layout = segments[0].weights.layout
        self.rows = slice(segments[0].start, segments[-1].stop)
        self._segments = segments
        self._spans = [segment.stop - segment.start for segment in segments]
        row_N = segments[0].weights.row_N
        # On a CPU adapters are float32 even where the model is bfloat16.
        self._dtype = row_N.dtype
        scales = torch.tensor([segment.scale for segment in segments], dtype=torch.float32)
        self._scale_T1 = scales.repeat_interleave(torch.tensor(self._spans))[:, None].to(row_N.device)

    def add(self, linear: Linear, x_TI: Tensor, y_TO: Tensor) -> Tensor:
        weights = self._weights(linear)
        x_TI = x_TI.to(self._dtype)
        mid_Ts = x_TI.new_empty(len(x_TI), len(weights[0].a_sI))
        for mid_ts, x_tI, site in zip(self._each(mid_Ts), self._each(x_TI), weights, strict=True):
            torch.mm(x_tI, site.a_Is, out=mid_ts)
        mid_Ts.mul_(self._scale_T1)
        for index, projection in enumerate(linear.projections):
            mids = self._each(_columns(mid_Ts, index, self.layout.rank))
            matrices = [site.b_RO[index] for site in weights]
            if projection.groups == 1 and y_TO.dtype is self._dtype is torch.float32:
                for y_to, mid_tR, b_Ro in zip(
                    self._each(view_columns(y_TO, projection)), mids, matrices, strict=True
                ):
                    y_to.addmm_(mid_tR, b_Ro)
            else:
                delta_To = mid_Ts.new_empty(len(mid_Ts), projection.outputs)
                for delta_to, mid_tR, b_Ro in zip(self._each(delta_To), mids, matrices, strict=True):
                    torch.mm(mid_tR, b_Ro, out=delta_to)
                # Rounded first: in place, an addition of two types takes half as long again.
                add_columns(y_TO, projection, delta_To.to(y_TO.dtype))
        return mid_Ts

    def backward(
        self, linear: Linear, x_TI: Tensor, mid_Ts: Tensor, dy_TO: Tensor, dx_TI: Tensor | None
    ) -> None:
        weights = self._weights(linear)
        gathering = [
            None if segment.gradients is None else segment.gradients.gather(linear)
            for segment in self._segments
        ]
        dmid_Ts = torch.empty_like(mid_Ts)
        for index, projection in enumerate(linear.projections):
            dys = self._each(columns_of(dy_TO, projection).to(self._dtype))
            mids = self._each(_columns(mid_Ts, index, self.layout.rank))
            dmids = self._each(_columns(dmid_Ts, index, self.layout.rank))
            for dy_to, mid_tR, dmid_tR, site, into in zip(dys, mids, dmids, weights, gathering, strict=True):
                torch.mm(dy_to, site.b_OR[index], out=dmid_tR)
                if into is not None:
                    put_product(into[0].b_OR[index], dy_to.t(), mid_tR, add=into[1])
        dmid_Ts.mul_(self._scale_T1)
        for x_tI, dmid_ts, into in zip(
            self._each(x_TI.to(self._dtype)), self._each(dmid_Ts), gathering, strict=True
        ):
            if into is not None:
                put_product(into[0].a_sI, dmid_ts.t(), x_tI, add=into[1])
        if dx_TI is not None:
            self._add_to_dx(weights, dmid_Ts, dx_TI)

    def _add_to_dx(self, weights: list[SiteViews], dmid_Ts: Tensor, dx_TI: Tensor) -> None:
        target_TI = dx_TI if dx_TI.dtype is self._dtype is torch.float32 else None
        product_TI = torch.empty_like(dx_TI, dtype=self._dtype) if target_TI is None else target_TI
        for product_tI, dmid_ts, site in zip(
            self._each(product_TI), self._each(dmid_Ts), weights, strict=True
        ):
            if target_TI is None:
                torch.mm(dmid_ts, site.a_sI, out=product_tI)
            else:
                product_tI.addmm_(dmid_ts, site.a_sI)
        if target_TI is None:
            dx_TI.add_(product_TI.to(dx_TI.dtype))

    def _weights(self, linear: Linear) -> list[SiteViews]:
        return [segment.weights.trained(linear) for segment in self._segments]

    def _each(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows of each run."""
        return rows.split_with_sizes(self._spans) if len(self._spans) > 1 else (rows,)


def add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right. In float32 at once, which gives the same bits as `grouped_mm` and then an
    addition (measured); in bfloat16 the product is rounded first, as there."""
    if target.dtype is left.dtype is torch.float32:
        target.addmm_(left, right)
    else:
        target.add_(left @ right)


def put_product(target: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """target = left @ right, or target += left @ right."""
    if add:
        add_product(target, left, right)
    elif target.dtype is left.dtype:
        torch.mm(left, right, out=target)
    else:
        target.copy_(left @ right)


def each_projection(mid_Ts: Tensor, linear: Linear) -> tuple[Tensor, ...]:
    """The columns of each projection, [T, R]."""
    if len(linear.projections) == 1:
        return (mid_Ts,)
    return torch.split(mid_Ts, mid_Ts.shape[1] // len(linear.projections), dim=1)


def columns_of(y_TO: Tensor, projection: Projection) -> Tensor:
    """The projection's own columns of a fused linear, [T, outputs]; a copy if they are interleaved."""
    return view_columns(y_TO, projection).reshape(-1, projection.outputs)


def _columns(mid_Ts: Tensor, index: int, rank: int) -> Tensor:
    """Those of one projection, [T, R]."""
    return mid_Ts[:, index * rank : (index + 1) * rank]


def add_columns(y_TO: Tensor, projection: Projection, delta: Tensor) -> None:
    columns = view_columns(y_TO, projection)
    columns.add_(delta.view(columns.shape))


def view_columns(y_TO: Tensor, projection: Projection) -> Tensor:
    """[T, outputs]; of a projection that is interleaved, [T, groups, its columns in one]."""
    if projection.groups == 1:
        return y_TO[:, projection.start : projection.stop]
    return y_TO.view(len(y_TO), projection.groups, -1)[:, :, projection.start : projection.stop]


def _layout_of(segment: LoraSegment) -> RowLayout:
    return segment.weights.layout
