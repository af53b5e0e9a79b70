"""Where each LoRA matrix of an adapter lies in its row, and what a row costs in bytes. Pure: no torch.

A row is exactly as large as its adapter: the matrices of the sections that it trains, at its own
rank rounded up to a multiple of 8 (R), section after section:

    attn:    layer 0 [A_q A_k A_v | B_q B_k B_v | A_o | B_o], layer 1, …
    mlp:     layer 0 [A_gate A_up | B_gate B_up | A_down | B_down], layer 1, …
    unembed: [A | B]

Projections that share an input have their A's side by side: one matrix product for all of them. An
adapter of rank r uses the first r rows of each A [R, in] and the first r columns of each B [out, R]; the
rest is padding and stays exactly zero. So each matrix and each row of B begins at a multiple of 16 bytes
in bfloat16, as `grouped_mm` demands on CUDA. Nothing else is wasted: 0 at ranks that are multiples of
8, (R - r) / r at others, whatever ranks and sections the neighbours have (ranks 4, 6, 8, 12, 16, 20, 32
and 64 side by side: 8% of the bytes).

Legend: N = elements of a row, R = rank of the row, r = rank of its adapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..bus.messages import LoraSpec
from .linears import (
    CUT_BY_INPUTS,
    CUT_BY_OUTPUTS,
    SECTIONS,
    Linear,
    ModelShape,
    Projection,
    Section,
    linears_of,
    own_part,
)
from .shard import WHOLE, Shard

_RANK_MULTIPLE = 8
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Site:
    """Where a linear's matrices lie in a row: the A's of its projections end to end, and each B.

    own: what this rank computes of the linear, with a_columns of every A and b_rows of each B.
    """

    linear: Linear
    a_offset: int
    b_offsets: tuple[int, ...]
    own: Linear
    a_columns: slice
    b_rows: tuple[slice, ...]

    def end(self, rank: int) -> int:
        """Where the next one begins, in rows of this rank."""
        return self.b_offsets[-1] + self.linear.projections[-1].outputs * rank


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowLayout:
    """Of all adapters of one geometry. number: in the order they were first needed.

    rank: R. size: N. sites: of the linears that such an adapter trains, as they follow in the row;
    by_linear: the same by the linear's index, None for others. shard: whose part `own` is.
    """

    number: int
    shape: ModelShape
    shard: Shard
    rank: int
    size: int
    sites: tuple[Site, ...]
    by_linear: tuple[Site | None, ...]

    def site(self, linear: Linear) -> Site | None:
        return self.by_linear[linear.index]

    @property
    def sections(self) -> tuple[Section, ...]:
        return tuple(dict.fromkeys(site.linear.section for site in self.sites))

    @property
    def layers_stop(self) -> int:
        """Where the matrices of the layers end: those of the unembedding come last."""
        last = self.sites[-1]
        return last.a_offset if last.linear.section == "unembed" else last.end(self.rank)

    def device_row_bytes(self, weight_bytes: int) -> int:
        """The most that such an adapter takes on the device, for weights of so many bytes an element.

        N * (weights + fp32 main 4 + gradients 4 + exp_avg 4 + exp_avg_sq 4), and 4 of the scratch row
        in which a forward_backward gathers before it joins the gradients. fp32 weights are their own
        main weights. So N * 22 in bfloat16, N * 20 in float32, which is what every adapter has on a
        CPU. Less is held between passes (4 less), while there is no gradient (4 less) and before the
        first step (8 less).
        """
        main = 0 if weight_bytes == _FP32_BYTES else _FP32_BYTES
        return self.size * (weight_bytes + main + 4 * _FP32_BYTES)

    def host_state_bytes(self) -> int:
        """The most that such an adapter's state takes elsewhere: N * 16.

        Main weights, gradients and both moments, 4 bytes each. The weights of the model's own type
        are not kept: they are the main weights rounded. Less is held while there is no gradient
        (4 less) and before the first step (8 less).
        """
        return self.size * 4 * _FP32_BYTES

    def parameters(self, rank: int) -> int:
        """How many numbers an adapter really trains, padding left out: sum of r * (in + out), where the row has
        R * (in + out)."""
        return self.size // self.rank * rank

    def projections(self) -> Iterator[Projection]:
        """All that are trained, in the order of the row."""
        return (projection for site in self.sites for projection in site.linear.projections)


class RowLayouts:
    """The layouts of one base model, each made once. linears: all that could have an adapter. own: what the
    rank with this shard computes of them.

    Rows are the same on every rank: whole, so that files, seeds and optimizer know nothing of shards.
    """

    def __init__(self, shape: ModelShape, shard: Shard = WHOLE) -> None:
        self.linears = tuple(linears_of(shape))
        self.own = tuple(own_part(linear, shard) for linear in self.linears)
        self._shape = shape
        self._shard = shard
        self._made: dict[tuple[int, tuple[Section, ...]], RowLayout] = {}

    def of(self, lora: LoraSpec) -> RowLayout:
        """The same object for every adapter of the same geometry."""
        return self.at(padded_rank(lora.rank), active_sections(lora))

    def at(self, rank: int, sections: tuple[Section, ...]) -> RowLayout:
        """rank: of the row. sections: in their order."""
        key = (rank, sections)
        if key not in self._made:
            self._made[key] = self._lay_out(*key)
        return self._made[key]

    def _lay_out(self, rank: int, sections: tuple[Section, ...]) -> RowLayout:
        by_linear: list[Site | None] = []
        offset = 0
        for linear, own in zip(self.linears, self.own, strict=True):
            site = None
            if linear.section in sections:
                site = _place(linear, own, self._shard, rank, offset)
                offset = site.end(rank)
            by_linear.append(site)
        return RowLayout(
            number=len(self._made),
            shape=self._shape,
            shard=self._shard,
            rank=rank,
            size=offset,
            sites=tuple(site for site in by_linear if site is not None),
            by_linear=tuple(by_linear),
        )


def active_sections(lora: LoraSpec) -> tuple[Section, ...]:
    flags = {"attn": lora.train_attn, "mlp": lora.train_mlp, "unembed": lora.train_unembed}
    return tuple(section for section in SECTIONS if flags[section])


def padded_rank(rank: int) -> int:
    """Up to the next multiple of 8."""
    return -(-rank // _RANK_MULTIPLE) * _RANK_MULTIPLE


def _place(linear: Linear, own: Linear, shard: Shard, rank: int, offset: int) -> Site:
    """A linear's matrices from `offset` on."""
    end = offset + len(linear.projections) * rank * linear.inputs
    b_offsets = []
    for projection in linear.projections:
        b_offsets.append(end)
        end += rank * projection.outputs
    columns = shard if linear.kind in CUT_BY_INPUTS else WHOLE
    rows = shard if linear.kind in CUT_BY_OUTPUTS else WHOLE
    b_rows = tuple(rows.of(each.outputs) for each in linear.projections)
    return Site(linear, offset, tuple(b_offsets), own, columns.of(linear.inputs), b_rows)
