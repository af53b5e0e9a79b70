"""Who computes a pass: this process by itself, or all ranks of the trainer (`ranks`).

Both do the same to the members' gradient rows, and answer in the members' order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from ..bus.config import TrainerConfig
from .backbone import Backbone
from .hf_config import BaseModel
from .members import Member
from .model_pass import RowsResult, run_members
from .output import OutputHead
from .row_floor import floor_of, neighbours_matter
from .row_layout import RowLayouts


class Compute(Protocol):
    @property
    def neighbours_matter(self) -> bool:
        """Whether a member's bits depend on what else is in its pass."""

    def run(self, members: Sequence[Member]) -> list[RowsResult]:
        """As `model_pass.run_members`. Raises torch.OutOfMemoryError: some rank has no room for it."""

    def tell_progress(self, alive: Callable[[], None]) -> None:
        """alive: called again and again within a pass."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The base model in this process's hands."""

    backbone: Backbone
    head: OutputHead

    @classmethod
    def load(
        cls,
        settings: TrainerConfig,
        base: BaseModel,
        layouts: RowLayouts,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Raises torch.OutOfMemoryError: the model does not fit on the device."""
        backbone = Backbone(base, layouts.own, dtype, device, recompute=settings.recompute)
        unembed = next(linear for linear in layouts.own if linear.kind == "unembed")
        head = OutputHead.of(backbone.output_weight, unembed, settings.logits_chunk, floor_of(device))
        return cls(backbone, head)

    @property
    def neighbours_matter(self) -> bool:
        weight_VH, ranks = self.head.weight_VH, self.backbone.group.shard.count
        return neighbours_matter(weight_VH.device, weight_VH.dtype, ranks)

    def run(self, members: Sequence[Member]) -> list[RowsResult]:
        return run_members(self.backbone, self.head, members)

    def tell_progress(self, alive: Callable[[], None]) -> None:
        self.backbone.tell_progress(alive)
