"""Where each LoRA matrix lies in a bank row, and what a slot costs in bytes. Pure: no torch.

A row holds every adapter's matrices at the bank's rank R, section after section:

    attn:    layer 0 [A_q A_k A_v | B_q B_k B_v | A_o | B_o], layer 1, …
    mlp:     layer 0 [A_gate A_up | B_gate B_up | A_down | B_down], layer 1, …
    unembed: [A | B]

so the adapter's active sections are one or two contiguous ranges, and projections that share an
input have their A's side by side (one matrix product for all of them). An adapter of rank r uses
the first r rows of each A [R, in] and the first r columns of each B [out, R]; the rest is padding
and stays exactly zero. R is a multiple of 8, so each matrix and each row of B begins at a multiple of
16 bytes in bfloat16, as `grouped_mm` demands on CUDA.

Legend: N = elements of a row, R = rank of the bank, r = rank of an adapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..bus.messages import LoraSpec

Section = Literal["attn", "mlp", "unembed"]
SECTIONS: tuple[Section, ...] = ("attn", "mlp", "unembed")
SiteKind = Literal["qkv", "proj", "fc1", "fc2", "unembed"]

_RANK_MULTIPLE = 8
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The dimensions of a Llama-like model that decide the shapes of its linears."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One linear of the Hugging Face model, named as there, with its A [R, inputs] and B [outputs, R].

    Its outputs are part of the fused linear of megatron-core: seen as [T, groups, width / groups],
    they are the columns start:stop of every group.
    """

    name: str
    inputs: int
    outputs: int
    a_offset: int
    b_offset: int
    groups: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A linear of megatron-core. Its projections share one input; their A's lie end to end.

    index: its place among the layout's sites.
    """

    index: int
    section: Section
    layer: int
    kind: SiteKind
    inputs: int
    outputs: int
    projections: tuple[Projection, ...]

    @property
    def a_offset(self) -> int:
        return self.projections[0].a_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """rank: R. size: N. bounds: where each section begins and ends."""

    shape: ModelShape
    rank: int
    size: int
    sites: tuple[Site, ...]
    bounds: dict[Section, tuple[int, int]]

    def active_sites(self, lora: LoraSpec) -> Iterator[Site]:
        wanted = active_sections(lora)
        return (site for site in self.sites if site.section in wanted)

    def projections(self, lora: LoraSpec) -> Iterator[Projection]:
        """Those that the adapter trains, in the order of the row."""
        return (projection for site in self.active_sites(lora) for projection in site.projections)

    def ranges(self, lora: LoraSpec) -> list[tuple[int, int]]:
        """The active parts of a row as (start, stop), neighbours merged: one or two of them."""
        merged: list[tuple[int, int]] = []
        for start, stop in (self.bounds[section] for section in active_sections(lora)):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        return merged

    def active_size(self, lora: LoraSpec) -> int:
        """Elements of the active parts, padding included."""
        return sum(stop - start for start, stop in self.ranges(lora))

    def parameters(self, lora: LoraSpec) -> int:
        """How many numbers the adapter really trains, padding left out: sum of r * (in + out)."""
        return sum(lora.rank * (each.inputs + each.outputs) for each in self.projections(lora))

    def device_row_bytes(self, weight_bytes: int) -> int:
        """Bytes of one device slot, whatever lies in it, for weights of `weight_bytes` an element.

        N * (weights + gradients 4 + exp_avg 4 + exp_avg_sq 4 + fp32 main 4), where fp32 weights are
        their own main weights and those 4 fall away: N * 18 in bfloat16, N * 16 in float32.
        """
        main = 0 if weight_bytes == _FP32_BYTES else _FP32_BYTES
        return self.size * (weight_bytes + main + 3 * _FP32_BYTES)

    def host_state_bytes(self, lora: LoraSpec) -> int:
        """The most that one adapter's state takes in host memory: active_size * 16.

        Main weights, gradients and both moments, 4 bytes each. The weights of the model's own type
        are not kept: they are the main weights rounded. Less is held while there is no gradient
        (4 less) and before the first step (8 less).
        """
        return self.active_size(lora) * 4 * _FP32_BYTES


def active_sections(lora: LoraSpec) -> tuple[Section, ...]:
    flags = {"attn": lora.train_attn, "mlp": lora.train_mlp, "unembed": lora.train_unembed}
    return tuple(section for section in SECTIONS if flags[section])


def row_layout(shape: ModelShape, max_rank: int) -> RowLayout:
    """Lay out a row for adapters of rank 1 to max_rank."""
    rank = padded_rank(max_rank)
    sites: list[Site] = []
    bounds: dict[Section, tuple[int, int]] = {}
    offset = 0
    for section in SECTIONS:
        start = offset
        for layer in range(shape.layers if section != "unembed" else 1):
            for plan in _linears(section, layer, shape):
                site, offset = _place(plan, rank, offset, index=len(sites))
                sites.append(site)
        bounds[section] = (start, offset)
    return RowLayout(shape=shape, rank=rank, size=offset, sites=tuple(sites), bounds=bounds)


def padded_rank(rank: int) -> int:
    """Up to the next multiple of 8."""
    return -(-rank // _RANK_MULTIPLE) * _RANK_MULTIPLE


@dataclass(frozen=True, slots=True)
class _Linear:
    """A site without offsets. outputs: (Hugging Face name, columns per group) in their order."""

    section: Section
    layer: int
    kind: SiteKind
    inputs: int
    groups: int
    outputs: tuple[tuple[str, int], ...]


def _linears(section: Section, layer: int, shape: ModelShape) -> list[_Linear]:
    prefix = f"model.layers.{layer}"
    head, per_group = shape.head_dim, shape.heads // shape.kv_heads * shape.head_dim
    if section == "attn":
        # megatron-core interleaves by key-value group: [its query heads, its key, its value].
        qkv = (
            (f"{prefix}.self_attn.q_proj", per_group),
            (f"{prefix}.self_attn.k_proj", head),
            (f"{prefix}.self_attn.v_proj", head),
        )
        out = ((f"{prefix}.self_attn.o_proj", shape.hidden),)
        return [
            _Linear(section, layer, "qkv", shape.hidden, shape.kv_heads, qkv),
            _Linear(section, layer, "proj", shape.heads * head, 1, out),
        ]
    if section == "mlp":
        gate_up = ((f"{prefix}.mlp.gate_proj", shape.ffn), (f"{prefix}.mlp.up_proj", shape.ffn))
        down = ((f"{prefix}.mlp.down_proj", shape.hidden),)
        return [
            _Linear(section, layer, "fc1", shape.hidden, 1, gate_up),
            _Linear(section, layer, "fc2", shape.ffn, 1, down),
        ]
    return [_Linear(section, layer, "unembed", shape.hidden, 1, (("lm_head", shape.vocab),))]


def _place(linear: _Linear, rank: int, offset: int, *, index: int) -> tuple[Site, int]:
    """Give a linear its offsets from `offset` on; return the site and where the next one begins."""
    projections = []
    a_offset = offset
    b_offset = offset + len(linear.outputs) * rank * linear.inputs
    column = 0
    for name, width in linear.outputs:
        outputs = width * linear.groups
        projections.append(
            Projection(
                name=name,
                inputs=linear.inputs,
                outputs=outputs,
                a_offset=a_offset,
                b_offset=b_offset,
                groups=linear.groups,
                start=column,
                stop=column + width,
            )
        )
        a_offset += rank * linear.inputs
        b_offset += rank * outputs
        column += width
    site = Site(
        index=index,
        section=linear.section,
        layer=linear.layer,
        kind=linear.kind,
        inputs=linear.inputs,
        outputs=column * linear.groups,
        projections=tuple(projections),
    )
    return site, b_offset
