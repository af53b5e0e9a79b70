"""Many adapters in few launches, for CUDA: all runs of one geometry in one `grouped_mm` per product.

The rows of a pass stand geometry by geometry. The weights of its runs are stacked once per pass (a copy of
microseconds), and their gradients gathered in rows of the pass's own until `finish` brings them to the
segments. Empty groups do not occur. `SegmentedPass` is the reference it is tested against.

Legend: G = runs of one geometry, T = their positions, N = elements of a row, k = projections of a
linear, R = rank of a row, s = k * R, I/O = inputs/outputs.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from .linears import Linear, Projection
from .lora_pass import LoraPass, LoraSegment, add_columns, columns_of, each_projection
from .row_layout import RowLayout, Site


class GroupedPass(LoraPass):
    """Segments of one layout stand side by side."""

    def __init__(self, segments: Sequence[LoraSegment]) -> None:
        super().__init__(segments)
        self._blocks = [_Block(layout, list(same)) for layout, same in groupby(segments, key=_layout_of)]

    def add(self, linear: Linear, x_TI: Tensor, y_TO: Tensor) -> list[Tensor]:
        return [block.add(site, x_TI[block.rows], y_TO[block.rows]) for block, site in self._active(linear)]

    def backward(
        self, linear: Linear, x_TI: Tensor, saved: Sequence[Tensor], dy_TO: Tensor, dx_TI: Tensor | None
    ) -> None:
        for (block, site), mid_Ts in zip(self._active(linear), saved, strict=True):
            rows = block.rows
            dmid_Ts = block.backward(site, x_TI[rows], mid_Ts, dy_TO[rows])
            if dx_TI is not None:
                dx_TI[rows] += block.back_to_x(site, dmid_Ts)

    def finish(self) -> None:
        for block in self._blocks:
            block.finish()

    def _active(self, linear: Linear) -> list[tuple["_Block", Site]]:
        found = ((block, block.layout.site(linear)) for block in self._blocks)
        return [(block, site) for block, site in found if site is not None]


class _Block:
    """The runs of one layout. rows: theirs in the pass."""

    def __init__(self, layout: RowLayout, segments: list[LoraSegment]) -> None:
        self.layout = layout
        self.rows = slice(segments[0].start, segments[-1].stop)
        self._segments = segments
        self._weights_GN = torch.stack([segment.weights.row_N for segment in segments])
        self._gradients_GN: Tensor | None = None
        self._gathered: list[Site] = []
        device = self._weights_GN.device
        spans = torch.tensor([segment.stop - segment.start for segment in segments])
        scales = torch.tensor([segment.scale for segment in segments], dtype=torch.float32)
        self._ends = spans.cumsum(0).to(device, torch.int32)
        self._scale_T1 = scales.repeat_interleave(spans)[:, None].to(device)

    def add(self, site: Site, x_TI: Tensor, y_TO: Tensor) -> Tensor:
        mid_Ts = self._scaled(self._grouped(x_TI, self._a(self._weights_GN, site).transpose(1, 2)))
        for mid_TR, b_GOR, projection in self._projections(site, mid_Ts, self._weights_GN):
            add_columns(y_TO, projection, self._grouped(mid_TR, b_GOR.transpose(1, 2)))
        return mid_Ts

    def backward(self, site: Site, x_TI: Tensor, mid_Ts: Tensor, dy_TO: Tensor) -> Tensor:
        wanted = any(segment.gradients is not None for segment in self._segments)
        into_GN = self._gather(site) if wanted else None
        dmids = []
        for index, (mid_TR, b_GOR, projection) in enumerate(
            self._projections(site, mid_Ts, self._weights_GN)
        ):
            dy = columns_of(dy_TO, projection)
            dmids.append(self._grouped(dy, b_GOR))
            if into_GN is not None:
                self._b(into_GN, site, index).copy_(self._grouped(dy.t(), mid_TR))
        dmid_Ts = self._scaled(torch.cat(dmids, dim=1))
        if into_GN is not None:
            self._a(into_GN, site).copy_(self._grouped(dmid_Ts.t(), x_TI))
        return dmid_Ts

    def back_to_x(self, site: Site, dmid_Ts: Tensor) -> Tensor:
        return self._grouped(dmid_Ts, self._a(self._weights_GN, site))

    def finish(self) -> None:
        """All but the unembedding, which `output` gathers."""
        if self._gradients_GN is None:
            return
        sites = sorted(self._gathered, key=_offset_of)
        assert sites == list(self.layout.sites[: len(sites)]), "backward reached some linears and not others"
        written = {site.linear.index for site in sites}
        for segment, gradients_N in zip(self._segments, self._gradients_GN, strict=True):
            if segment.gradients is not None:
                segment.gradients.join(gradients_N, written)

    def _gather(self, site: Site) -> Tensor:
        if self._gradients_GN is None:
            # Where ranks share linears, this one gathers a part of each.
            empty = torch.empty_like if self.layout.shard.count == 1 else torch.zeros_like
            self._gradients_GN = empty(self._weights_GN, dtype=torch.float32)
        self._gathered.append(site)
        return self._gradients_GN

    def _grouped(self, left: Tensor, right: Tensor) -> Tensor:
        return F.grouped_mm(left, right, offs=self._ends)

    def _scaled(self, mid_Ts: Tensor) -> Tensor:
        # A float32 factor would leave a float32 result: round back to the model's type.
        return (mid_Ts * self._scale_T1).to(mid_Ts.dtype)

    def _projections(
        self, site: Site, mid_Ts: Tensor, rows_GN: Tensor
    ) -> list[tuple[Tensor, Tensor, Projection]]:
        projections = site.own.projections
        mids = each_projection(mid_Ts, site.own)
        matrices = [self._b(rows_GN, site, index) for index in range(len(projections))]
        return list(zip(mids, matrices, projections, strict=True))

    def _a(self, rows_GN: Tensor, site: Site) -> Tensor:
        """[G, s, I], strided over the rows."""
        part = rows_GN[:, site.a_offset : site.b_offsets[0]]
        part = part.view(len(part), -1, site.linear.inputs)
        return part if site.own.inputs == site.linear.inputs else part[:, :, site.a_columns]

    def _b(self, rows_GN: Tensor, site: Site, index: int) -> Tensor:
        """[G, O, R], strided over the rows."""
        offset, rows = site.b_offsets[index], site.b_rows[index]
        part = rows_GN[:, offset + rows.start * self.layout.rank : offset + rows.stop * self.layout.rank]
        return part.view(len(part), -1, self.layout.rank)


def _layout_of(segment: LoraSegment) -> RowLayout:
    return segment.weights.layout


def _offset_of(site: Site) -> int:
    return site.a_offset
