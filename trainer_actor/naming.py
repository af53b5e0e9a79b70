"""Rows as named tensors, cut to the adapter's rank, and back: what leaves the bank has no padding.

Names are Hugging Face PEFT's, so a file says what it holds. Reading is strict: names, shapes and
types must be exactly the adapter's, or the error lists what differs.

Legend: N = active elements of a row, r = rank of the adapter, R = of the bank.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..bus.errors import CheckpointMismatch
from ..bus.messages import LoraSpec
from .row_layout import Projection, RowLayout

_PREFIX = "base_model.model."
_LISTED = 5
# The narrower floating point types have no arithmetic, not even to find out whether they are finite.
_READ = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def named_parts(layout: RowLayout, lora: LoraSpec, active_N: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each A [r, in] and B [out, r] as a view of a flat state piece."""
    for projection in layout.projections(lora):
        offset = _shift(layout, lora, projection)
        a_size, b_size = projection.inputs * layout.rank, projection.outputs * layout.rank
        a_start, b_start = projection.a_offset - offset, projection.b_offset - offset
        a_matrix = active_N[a_start : a_start + a_size].view(layout.rank, projection.inputs)
        b_matrix = active_N[b_start : b_start + b_size].view(projection.outputs, layout.rank)
        yield f"{_PREFIX}{projection.name}.lora_A.weight", a_matrix[: lora.rank]
        yield f"{_PREFIX}{projection.name}.lora_B.weight", b_matrix[:, : lora.rank]


def _shift(layout: RowLayout, lora: LoraSpec, projection: Projection) -> int:
    """How far a place in the row lies from the same place in the active parts end to end."""
    before = 0
    for start, stop in layout.ranges(lora):
        if start <= projection.a_offset < stop:
            return start - before
        before += stop - start
    raise AssertionError(f"{projection.name} is not active")


def to_named(layout: RowLayout, lora: LoraSpec, active_N: Tensor) -> dict[str, Tensor]:
    """Contiguous copies by name."""
    return {name: part.contiguous() for name, part in named_parts(layout, lora, active_N)}


def from_named(layout: RowLayout, lora: LoraSpec, tensors: Mapping[str, Tensor], *, what: str) -> Tensor:
    """A flat float32 state piece [N] with zeros in its padding.

    Raises:
        CheckpointMismatch: other names, shapes or types than the adapter's, or NaN.
    """
    active_N = torch.zeros(layout.active_size(lora))
    parts = dict(named_parts(layout, lora, active_N))
    differences = [*_key_differences(parts, tensors), *_tensor_differences(parts, tensors)]
    if differences:
        raise CheckpointMismatch(f"{what} does not fit: {listed(differences)}")
    for name, part in parts.items():
        part.copy_(tensors[name])
    return active_N


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
        elif not bool(torch.isfinite(tensor.float()).all()):
            yield f"{name} holds NaN or infinity in float32"
