"""What the trainer's loop and its compute engine say to each other. No torch, no sockets.

The loop decides which operations run and where their adapters lie; the engine (`engine.TrainEngine`)
computes. A pass is one run of packed rows over the base model.

Legend: B = datums of one part, T = its positions packed end to end, K = targets of a position,
N = parameters of a bank row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..bus.errors import LoractlError
from ..bus.messages import Bytes, Floats, Ints, LoraSpec, LossName
from .compositions import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPart:
    """One operation's share of a pass: its datums, its loss, and the slot its adapter lies in.

    Fields as in `messages.ForwardBackward`. With `backward` False nothing of the slot changes. seats: in the
    passes in which it runs again; none: it is cut, and runs, as it comes.
    """

    slot: int
    lora: LoraSpec
    lengths: Ints
    tokens: Ints
    targets: Ints
    weights: Floats
    old_logprobs: Floats
    advantages: Floats
    loss: LossName
    loss_config: Mapping[str, float]
    backward: bool
    ratio_mask: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    seats: tuple[Seat, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """What one part computed: logprobs and loss_terms in the order and shape of its targets, [T] or [T, K].
    composition: as in `messages.PassResult`."""

    logprobs: Floats
    loss_terms: Floats
    metrics: Mapping[str, float]
    composition: Bytes


# A part that fails (NaN, bad data) leaves its slot as it was and harms no other part of the pass.
PartOutcome = PartResult | LoractlError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamParams:
    """AdamW with decoupled weight decay (arXiv 1711.05101); grad_clip_norm 0 is off."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """applied False: there was no gradient, and nothing changed. grad_norm: before clipping."""

    applied: bool
    step: int
    grad_norm: float
    tokens: int
