"""A row's memory as matrices: the A and B of every linear, where the layout puts them.

Memory of rows is given back and taken again by others of the same layout, and keeps its views: making
them anew for every linear of every pass would cost more than multiplying small ones.

Legend: N = elements of a row, k = projections of a linear, R = rank of the row, I/O = inputs/outputs,
s = k * R.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from torch import Tensor

from .linears import Linear
from .row_layout import RowLayout, Site


@dataclass(frozen=True, slots=True)
class SiteViews:
    """a: the A's of all projections end to end, [k * R, I]; b [O, R] of each; and both transposed. Of a linear
    that ranks share, this rank's inputs and outputs."""

    a_sI: Tensor
    b_OR: tuple[Tensor, ...]
    a_Is: Tensor
    b_RO: tuple[Tensor, ...]


class RowViews:
    """The matrices of one row [N], made when they are first asked for."""

    def __init__(self, row_N: Tensor, layout: RowLayout) -> None:
        assert row_N.numel() == layout.size
        self.row_N = row_N
        self.layout = layout
        self._made: list[SiteViews | None] = []

    def at(self, linear: Linear) -> SiteViews | None:
        """None: the adapter does not train it."""
        if not self._made:
            rank = self.layout.rank
            self._made = [
                None if site is None else _site_views(self.row_N, rank, site)
                for site in self.layout.by_linear
            ]
        return self._made[linear.index]

    def trained(self, linear: Linear) -> SiteViews:
        views = self.at(linear)
        assert views is not None, "not trained"
        return views


class GradientRow:
    """Gathers gradients in a row whose memory may hold anything before.

    What comes first at a linear replaces what lay there and what comes later is added, so nothing
    needs zeroing beforehand.
    """

    def __init__(self, views: RowViews) -> None:
        self.views = views
        self._written: set[int] = set()

    def gather(self, linear: Linear) -> tuple[SiteViews, bool]:
        """Where to write a linear's gradients, all of them, and whether to add."""
        views = self.views.trained(linear)
        add = linear.index in self._written
        self._written.add(linear.index)
        return views, add

    def finish(self) -> Tensor:
        """The gradients [N], with zeros where none came."""
        row_N, sites = self.views.row_N, self.views.layout.sites
        if len(self._written) < len(sites):
            for site in sites:
                if site.linear.index not in self._written:
                    row_N[site.a_offset : site.end(self.views.layout.rank)].zero_()
                    self._written.add(site.linear.index)
        return row_N

    @property
    def written(self) -> list[int]:
        """Indices of the linears at which something came."""
        return sorted(self._written)

    def join(self, gradients_N: Tensor, written: Collection[int]) -> None:
        """Gather what another row of this layout has at these linears, as if it came here one by one."""
        for (there, add), sites in groupby(self.views.layout.sites, key=partial(self._way_of, written)):
            if there:
                self._join_range(list(sites), gradients_N, add=add)

    def _way_of(self, written: Collection[int], site: Site) -> tuple[bool, bool]:
        index = site.linear.index
        return index in written, index in self._written

    def _join_range(self, sites: Sequence[Site], gradients_N: Tensor, *, add: bool) -> None:
        """Sites end to end in the row move as one range."""
        mine = slice(sites[0].a_offset, sites[-1].end(self.views.layout.rank))
        if add:
            self.views.row_N[mine].add_(gradients_N[mine])
        else:
            self.views.row_N[mine].copy_(gradients_N[mine])
            self._written.update(site.linear.index for site in sites)


def _site_views(row_N: Tensor, rank: int, site: Site) -> SiteViews:
    a_sI = row_N[site.a_offset : site.b_offsets[0]].view(-1, site.linear.inputs)[:, site.a_columns]
    b_OR = tuple(
        row_N[offset + rows.start * rank : offset + rows.stop * rank].view(-1, rank)
        for offset, rows in zip(site.b_offsets, site.b_rows, strict=True)
    )
    return SiteViews(a_sI, b_OR, a_sI.t(), tuple(each.t() for each in b_OR))
