"""Rows as named tensors, cut to the adapter's rank, and back: what leaves the bank has no padding.

Names are Hugging Face PEFT's, so a file says what it holds. Reading is strict: names, shapes and
types must be exactly the adapter's, or the error lists what differs.

Legend: N = elements of a row, r = rank of the adapter, R = of its row.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..bus.errors import CheckpointMismatch
from .row_layout import RowLayout

_PREFIX = "base_model.model."
_LISTED = 5
# The narrower floating point types have no arithmetic, not even to find out whether they are finite.
_READ = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def named_parts(layout: RowLayout, rank: int, piece_N: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each A [r, in] and B [out, r] as a view of a state piece, in the order of the row."""
    for site in layout.sites:
        a_offset = site.a_offset
        for projection, b_offset in zip(site.linear.projections, site.b_offsets, strict=True):
            a_stop = a_offset + projection.inputs * layout.rank
            b_stop = b_offset + projection.outputs * layout.rank
            a_RI = piece_N[a_offset:a_stop].view(layout.rank, projection.inputs)
            b_OR = piece_N[b_offset:b_stop].view(projection.outputs, layout.rank)
            yield f"{_PREFIX}{projection.name}.lora_A.weight", a_RI[:rank]
            yield f"{_PREFIX}{projection.name}.lora_B.weight", b_OR[:, :rank]
            a_offset = a_stop


def to_named(layout: RowLayout, rank: int, piece_N: Tensor) -> dict[str, Tensor]:
    """Contiguous copies by name."""
    return {name: part.contiguous() for name, part in named_parts(layout, rank, piece_N)}


def from_named(layout: RowLayout, rank: int, tensors: Mapping[str, Tensor], *, what: str) -> Tensor:
    """A float32 state piece [N] with zeros in its padding.

    Raises:
        CheckpointMismatch: other names, shapes or types than the adapter's, or NaN.
    """
    piece_N = torch.zeros(layout.size)
    parts = dict(named_parts(layout, rank, piece_N))
    differences = [*_key_differences(parts, tensors), *_tensor_differences(parts, tensors)]
    if differences:
        raise CheckpointMismatch(f"{what} does not fit: {listed(differences)}")
    for name, part in parts.items():
        part.copy_(tensors[name])
    return piece_N


def listed(differences: list[str]) -> str:
    """The first few differences and how many more there are."""
    more = len(differences) - _LISTED
    return "; ".join(differences[:_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _key_differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    for name in wanted:
        if name not in found:
            yield f"{name} is missing"
    for name in found:
        if name not in wanted:
            yield f"{name} has no place in the adapter"


def _tensor_differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    for name, part in wanted.items():
        tensor = found.get(name)
        if tensor is None:
            continue
        if tensor.shape != part.shape:
            yield f"{name} is {list(tensor.shape)} and should be {list(part.shape)}"
        elif tensor.dtype not in _READ:
            yield f"{name} is {tensor.dtype}, not float32, float64, float16 or bfloat16"
        elif not _is_finite(tensor):
            yield f"{name} holds NaN or infinity in float32"


def _is_finite(tensor: Tensor) -> bool:
    """In float32. The extremes tell, and a NaN is both: a third of the time of looking at each number."""
    return bool(torch.isfinite(torch.stack(tensor.float().aminmax())).all())
