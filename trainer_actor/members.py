"""What takes part in a pass: pieces of operations as tensors, and fillers in the places of others.

Legend: t = positions of one run, B = datums. Targets are [t], or [t, K] where a position has K of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bus.messages import LossName
from .compositions import RunShape
from .loss_settings import checked_settings
from .losses import LossInputs
from .passes import PassPart
from .row_views import GradientRow, RowViews


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Whole datums of one operation, as tensors on the device."""

    lengths: list[int]
    tokens_t: Tensor
    targets_t: Tensor
    inputs: LossInputs
    loss: LossName
    settings: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What one run brings into a pass. weights: None for the base model alone. gradients: None to compute
    none. filler: what it stands for, if it is one."""

    rows: Rows
    scale: float
    weights: RowViews | None
    gradients: GradientRow | None
    filler: RunShape | None = None

    @property
    def backward(self) -> bool:
        return self.gradients is not None if self.filler is None else self.filler.backward


def rows_of(part: PassPart, device: torch.device) -> Rows:
    """All datums of a part."""

    def floats(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Rows(
        lengths=part.lengths.tolist(),
        tokens_t=torch.tensor(part.tokens, device=device),
        targets_t=torch.tensor(part.targets, device=device),
        inputs=LossInputs(
            weights_T=floats(part.weights),
            old_logprobs_T=floats(part.old_logprobs),
            advantages_T=floats(part.advantages),
            ratio_mask_T=floats(part.ratio_mask),
            lengths_B=torch.tensor(part.lengths, device=device),
        ),
        loss=part.loss,
        settings=checked_settings(part.loss, part.loss_config),
    )


def cut(lengths: Sequence[int], budget: int) -> list[int]:
    """Datums of each piece of at most `budget` positions; a longer datum is alone."""
    counts: list[int] = []
    size = budget + 1
    for length in lengths:
        if size + length > budget:
            counts.append(0)
            size = 0
        counts[-1] += 1
        size += length
    return counts


def split_rows(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    """Cut into pieces of so many datums."""
    pieces, position, datum = [], 0, 0
    for count in counts:
        lengths = rows.lengths[datum : datum + count]
        mine = slice(position, position + sum(lengths))
        inputs = rows.inputs.rows(mine, slice(datum, datum + count))
        position, datum = mine.stop, datum + count
        pieces.append(
            replace(
                rows,
                lengths=lengths,
                tokens_t=rows.tokens_t[mine],
                targets_t=rows.targets_t[mine],
                inputs=inputs,
            )
        )
    return pieces


def filler(shape: RunShape, like: Member | None, device: torch.device) -> Member:
    """In the place of a run that is not there. like: a member of its geometry, whose weights are as good as
    any; nothing is gathered of them."""
    count = shape.positions
    nothing = torch.zeros(0, device=device)
    rows = Rows(
        lengths=list(shape.lengths),
        tokens_t=torch.zeros(count, dtype=torch.int64, device=device),
        targets_t=torch.zeros(
            (count,) if shape.targets == 1 else (count, shape.targets), dtype=torch.int64, device=device
        ),
        inputs=LossInputs(weights_T=nothing, old_logprobs_T=nothing, advantages_T=nothing),
        loss="cross_entropy",
        settings={},
    )
    weights, scale = (like.weights, like.scale) if like is not None else (None, 1.0)
    return Member(rows=rows, scale=scale, weights=weights, gradients=None, filler=shape)
