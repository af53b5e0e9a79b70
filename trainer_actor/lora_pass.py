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

import torch
from torch import Tensor

from .row_layout import Linear, Projection
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
    def backward(self, linear: Linear, x_TI: Tensor, saved: Sequence[Tensor], dy_TO: Tensor) -> Tensor:
        """Gather the segments' gradients; return the gradient of x [T, I]."""

    def finish(self) -> None:  # noqa: B027  # nothing, where nothing was gathered elsewhere
        """After the pass: bring to the segments what `backward` gathered elsewhere."""


class SegmentedPass(LoraPass):
    """One adapter after the other. An adapter's products have the same shapes whoever else is there."""

    def add(self, linear: Linear, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        saved = []
        for segment, weights in self._active(linear):
            mid_ts = (x_TI[segment.rows] @ weights.a_sI.t()).mul_(segment.scale)
            for mid_tR, b_OR, projection in zip(
                each_projection(mid_ts, linear), weights.b_OR, linear.projections, strict=True
            ):
                _add_product_to_columns(y_TO[segment.rows], projection, mid_tR, b_OR.t())
            saved.append(mid_ts)
        return saved

    def backward(self, linear: Linear, x_TI: Tensor, saved: Sequence[Tensor], dy_TO: Tensor) -> Tensor:
        active = self._active(linear)
        if len(active) == 1 and active[0][0].stop - active[0][0].start == len(x_TI):
            return _backward_segment(linear, *active[0], x_TI, saved[0], dy_TO)
        dx_TI = torch.zeros_like(x_TI)
        for (segment, weights), mid_ts in zip(active, saved, strict=True):
            rows = segment.rows
            dx_TI[rows] = _backward_segment(linear, segment, weights, x_TI[rows], mid_ts, dy_TO[rows])
        return dx_TI

    def _active(self, linear: Linear) -> list[tuple[LoraSegment, SiteViews]]:
        found = ((segment, segment.weights.at(linear)) for segment in self.segments)
        return [(segment, weights) for segment, weights in found if weights is not None]


def _backward_segment(
    linear: Linear, segment: LoraSegment, weights: SiteViews, x_tI: Tensor, mid_ts: Tensor, dy_tO: Tensor
) -> Tensor:
    into, add = segment.gradients.gather(linear) if segment.gradients is not None else (None, False)
    dmid_ts = torch.empty_like(mid_ts)
    mids, dmids = each_projection(mid_ts, linear), each_projection(dmid_ts, linear)
    for index, projection in enumerate(linear.projections):
        dy = columns_of(dy_tO, projection)
        torch.mm(dy, weights.b_OR[index], out=dmids[index])
        if into is not None:
            put_product(into.b_OR[index], dy.t(), mids[index], add=add)
    dmid_ts.mul_(segment.scale)
    if into is not None:
        put_product(into.a_sI, dmid_ts.t(), x_tI, add=add)
    return dmid_ts @ weights.a_sI


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
    return _view_columns(y_TO, projection).reshape(-1, projection.outputs)


def _add_product_to_columns(y_TO: Tensor, projection: Projection, left: Tensor, right: Tensor) -> None:
    if projection.groups == 1:
        add_product(y_TO[:, projection.start : projection.stop], left, right)
    else:
        add_columns(y_TO, projection, left @ right)


def add_columns(y_TO: Tensor, projection: Projection, delta: Tensor) -> None:
    columns = _view_columns(y_TO, projection)
    columns.add_(delta.view(columns.shape))


def _view_columns(y_TO: Tensor, projection: Projection) -> Tensor:
    """[T, groups, columns of the projection]."""
    grouped = y_TO.view(len(y_TO), projection.groups, -1)
    return grouped[:, :, projection.start : projection.stop]
