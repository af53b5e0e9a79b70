"""A fresh adapter's weights, from its own seed: the same on every slot and device."""

import hashlib
import math

import torch
from torch import Tensor

from ..bus.messages import LoraSpec
from .naming import named_parts
from .row_layout import RowLayout


def fresh_weights(layout: RowLayout, lora: LoraSpec) -> Tensor:
    """The row [N], float32: B is zero, so the fresh adapter is the base model.

    A is drawn as PEFT does (kaiming_uniform_ with a = sqrt 5: uniform within 1 / sqrt(in)), on the
    CPU and in full. Each matrix has a generator of its own, seeded by the adapter's seed and the
    matrix's name, so what else the adapter trains does not change it.
    """
    main_N = torch.zeros(layout.size)
    for name, part in named_parts(layout, lora.rank, main_N):
        if name.endswith(".lora_A.weight"):
            bound = 1 / math.sqrt(part.shape[1])
            part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=_generator(lora.seed, name)))
    return main_N


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
