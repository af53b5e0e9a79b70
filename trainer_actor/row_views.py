"""Views of one bank row: the A and B matrices where the layout puts them, cut to an adapter's width.

The memory of rows never moves, so views are made once and kept: making them anew for every linear
of every pass would cost more than multiplying small ones.

Legend: N = elements of a row, k = projections of a site, r = width: the rank of an adapter up to the
next multiple of 8, R = rank of the bank, I/O = inputs/outputs.
"""

from dataclasses import dataclass

from torch import Tensor

from .row_layout import Projection, RowLayout, Site


@dataclass(frozen=True, slots=True)
class SiteViews:
    """a [k, r, I]; b [O, r] of each projection."""

    a_krI: Tensor
    b_Or: tuple[Tensor, ...]

    def stacked_a(self) -> Tensor:
        """[k * r, I]; a copy where the cut leaves gaps between the A's."""
        return self.a_krI.reshape(-1, self.a_krI.shape[2])


class RowViews:
    """The views of a row [N] at one width."""

    def __init__(self, row_N: Tensor, layout: RowLayout, width: int) -> None:
        self._row = row_N
        self._rank = layout.rank
        self._width = width
        self._made: list[SiteViews | None] = [None] * len(layout.sites)

    def at(self, site: Site) -> SiteViews:
        made = self._made[site.index]
        if made is None:
            made = SiteViews(self._a(site), tuple(self._b(each) for each in site.projections))
            self._made[site.index] = made
        return made

    def _a(self, site: Site) -> Tensor:
        stop = site.a_offset + len(site.projections) * self._rank * site.inputs
        return self._row[site.a_offset : stop].view(-1, self._rank, site.inputs)[:, : self._width]

    def _b(self, projection: Projection) -> Tensor:
        stop = projection.b_offset + projection.outputs * self._rank
        return self._row[projection.b_offset : stop].view(-1, self._rank)[:, : self._width]


class RowsViews:
    """The views of the rows of one tensor [rows, N], made when they are first asked for."""

    def __init__(self, rows: Tensor, layout: RowLayout) -> None:
        self.rows = rows
        self._layout = layout
        self._made: dict[tuple[int, int], RowViews] = {}

    def at(self, row: int, width: int) -> RowViews:
        key = (row, width)
        if key not in self._made:
            self._made[key] = RowViews(self.rows[row], self._layout, width)
        return self._made[key]
