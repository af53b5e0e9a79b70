"""Which linears of a base model can have LoRA matrices, and which projections of Hugging Face's model are in each.

Pure: no torch. megatron-core fuses projections that share an input into one linear; with tensor parallelism
every rank computes a part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .shard import Shard

Section = Literal["attn", "mlp", "unembed"]
SECTIONS: tuple[Section, ...] = ("attn", "mlp", "unembed")
LinearKind = Literal["qkv", "proj", "fc1", "fc2", "unembed"]
CUT_BY_OUTPUTS: tuple[LinearKind, ...] = ("qkv", "fc1")
CUT_BY_INPUTS: tuple[LinearKind, ...] = ("proj", "fc2")


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
    """One linear of the Hugging Face model, named as there.

    Its outputs are part of the fused linear of megatron-core: seen as [T, groups, width / groups],
    they are the columns start:stop of every group.
    """

    name: str
    inputs: int
    outputs: int
    groups: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """A linear of megatron-core, the same for all adapters. Its projections share one input.

    index: its place among all linears of the model, trained or not.
    """

    index: int
    section: Section
    layer: int
    kind: LinearKind
    inputs: int
    outputs: int
    projections: tuple[Projection, ...]


def linears_of(shape: ModelShape) -> Iterator[Linear]:
    """In the order of a row."""
    index = 0
    for section in SECTIONS:
        for layer in range(shape.layers if section != "unembed" else 1):
            for kind, inputs, groups, widths in _of_layer(section, layer, shape):
                projections = tuple(_projections(inputs, groups, widths))
                yield Linear(
                    index=index,
                    section=section,
                    layer=layer,
                    kind=kind,
                    inputs=inputs,
                    outputs=sum(each.outputs for each in projections),
                    projections=projections,
                )
                index += 1


def own_part(linear: Linear, shard: Shard) -> Linear:
    """Of qkv and fc1 some outputs of every projection, qkv's by key-value groups; of proj and fc2 some
    inputs; the unembedding, which the first rank computes alone, as it is."""
    if shard.count == 1 or linear.kind == "unembed":
        return linear
    projections = tuple(_own_projection(each, linear.kind, shard.count) for each in linear.projections)
    return replace(
        linear,
        inputs=projections[0].inputs,
        outputs=sum(each.outputs for each in projections),
        projections=projections,
    )


def _own_projection(whole: Projection, kind: LinearKind, count: int) -> Projection:
    if kind in CUT_BY_INPUTS:
        return replace(whole, inputs=whole.inputs // count)
    if kind == "qkv":
        return replace(whole, outputs=whole.outputs // count, groups=whole.groups // count)
    return replace(
        whole, outputs=whole.outputs // count, start=whole.start // count, stop=whole.stop // count
    )


_Widths = tuple[tuple[str, int], ...]  # Hugging Face name and columns per group of each projection


def _of_layer(section: Section, layer: int, shape: ModelShape) -> list[tuple[LinearKind, int, int, _Widths]]:
    """Kind, inputs, groups and widths of a section's linears."""
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
        return [("qkv", shape.hidden, shape.kv_heads, qkv), ("proj", shape.heads * head, 1, out)]
    if section == "mlp":
        gate_up = ((f"{prefix}.mlp.gate_proj", shape.ffn), (f"{prefix}.mlp.up_proj", shape.ffn))
        down = ((f"{prefix}.mlp.down_proj", shape.hidden),)
        return [("fc1", shape.hidden, 1, gate_up), ("fc2", shape.ffn, 1, down)]
    return [("unembed", shape.hidden, 1, (("lm_head", shape.vocab),))]


def _projections(inputs: int, groups: int, widths: _Widths) -> Iterator[Projection]:
    column = 0
    for name, width in widths:
        yield Projection(
            name=name,
            inputs=inputs,
            outputs=width * groups,
            groups=groups,
            start=column,
            stop=column + width,
        )
        column += width
