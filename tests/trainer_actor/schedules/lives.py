"""What one adapter does from its creation to its end, as data: drawn at random, sent as messages.

`choose` stands for where randomness comes from: hypothesis, which shrinks towards small numbers, or a
seeded generator. Small numbers are the simple choices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import assert_never

import numpy as np
from loractl.bus.messages import (
    ExportWeights,
    ForwardBackward,
    LoadCheckpoint,
    LoraSpec,
    LossName,
    Message,
    OptimStep,
    PublishAdapter,
    SaveCheckpoint,
)

Choose = Callable[[int], int]  # a number from 0 to n - 1

VOCAB = 32
MAX_TOKENS = 48
MAX_RANK = 16

LENGTHS: Sequence[tuple[int, ...]] = ((5,), (16,), (7, 5), (1,), (30,), (9, 2, 4), (20, 20), (1, 1), (33, 3))
LOSSES: Sequence[tuple[LossName, Mapping[str, float]]] = (
    ("cross_entropy", {}),
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.05}),
    ("cispo", {}),
    ("dro", {"beta": 0.2}),
    ("gspo", {}),
    ("stable_reinforce", {}),
)
RATES = (0.03, 0.001, 0.2)


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward_backward, or with `backward` False a forward. data: which random datums. loss: an index
    of LOSSES. targets: of each position. fault: what is wrong with it, if anything."""

    data: int
    lengths: tuple[int, ...]
    loss: int = 0
    targets: int = 1
    backward: bool = True
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    rate: float
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
    beta2: float = 0.95


@dataclass(frozen=True, slots=True)
class Save:
    """Under a name that says which of the life's operations it is."""


@dataclass(frozen=True, slots=True)
class Load:
    """of: the index of the operation that saved, or one that saved nothing."""

    of: int
    with_optimizer: bool


@dataclass(frozen=True, slots=True)
class Export:
    """The weights as files."""


@dataclass(frozen=True, slots=True)
class Publish:
    """The weights as a version, which is also scored on a probe."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Save, let go of all that lies in memory, and take it up again. Alone it is only the save."""


Op = Pass | Step | Save | Load | Export | Publish | Unload


@dataclass(frozen=True, slots=True)
class Life:
    lora: LoraSpec
    ops: tuple[Op, ...]


def draw_life(choose: Choose) -> Life:
    rank = (4, 1, 8, 3, 16, 9)[choose(6)]
    attn, mlp, unembed = (
        (True, True, False),
        (True, True, True),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    )[choose(5)]
    lora = LoraSpec(
        rank=rank,
        alpha=(2.0 * rank, 1.0, 7.5)[choose(3)],
        seed=choose(4),
        train_attn=attn,
        train_mlp=mlp,
        train_unembed=unembed,
    )
    return Life(lora, tuple(_draw_op(choose, index) for index in range(1 + choose(9))))


def _draw_op(choose: Choose, index: int) -> Op:
    match choose(16):
        case 0 | 1 | 2 | 3 | 4 | 5:
            return _draw_pass(choose)
        case 6 | 7 | 8 | 9:
            return Step(
                rate=RATES[choose(3)],
                weight_decay=(0.0, 0.1)[choose(2)],
                grad_clip_norm=(0.0, 0.5)[choose(2)],
                beta2=(0.95, 0.999)[choose(2)],
            )
        case 10:
            return Pass(choose(6), LENGTHS[choose(len(LENGTHS))], backward=False)
        case 11:
            return Pass(choose(6), (5,), fault=("token", "weights", "setting")[choose(3)])
        case 12:
            return (Save(), Unload())[choose(2)]
        case 13:
            return Load(of=choose(index + 1), with_optimizer=not choose(2))
        case 14:
            return (Export(), Publish())[choose(2)]
        case _:
            return Step(rate=float("nan")) if choose(2) else Step(rate=0.0)


def _draw_pass(choose: Choose) -> Pass:
    loss = choose(len(LOSSES))
    targets = 1 if loss else (1, 1, 3)[choose(3)]
    return Pass(choose(6), LENGTHS[choose(len(LENGTHS))], loss, targets)


def saved_as(index: int) -> str:
    return f"at-{index}"


def message_of(op: Op, index: int, where: Mapping[str, object]) -> Message:
    """The message of a life's `index`-th operation. where: adapter, lane and seq."""
    match op:
        case Pass():
            return ForwardBackward(**pass_fields(op), **where)  # type: ignore[arg-type]
        case Step():
            return OptimStep(
                learning_rate=op.rate,
                weight_decay=op.weight_decay,
                grad_clip_norm=op.grad_clip_norm,
                beta2=op.beta2,
                **where,  # type: ignore[arg-type]
            )
        case Save() | Unload():
            return SaveCheckpoint(name=saved_as(index), overwrite=True, **where)  # type: ignore[arg-type]
        case Load():
            name, with_optimizer = saved_as(op.of), op.with_optimizer
            source = where["adapter"]
            return LoadCheckpoint(source=source, name=name, with_optimizer=with_optimizer, **where)  # type: ignore[arg-type]
        case Export():
            return ExportWeights(**where)  # type: ignore[arg-type]
        case Publish():
            return PublishAdapter(**where)  # type: ignore[arg-type]
        case _:
            assert_never(op)


@cache
def pass_fields(op: Pass) -> Mapping[str, object]:
    """The fields of a ForwardBackward but for where it goes."""
    draw = np.random.default_rng([op.data, sum(op.lengths), op.loss, op.targets])
    total = sum(op.lengths)
    shape = (total, op.targets) if op.targets > 1 else (total,)
    loss, settings = LOSSES[op.loss]
    policy = total if loss != "cross_entropy" else 0
    weights = draw.random(shape) * (draw.random(shape) > 0.2)
    tokens = draw.integers(0, VOCAB, total)
    return {
        "lengths": np.array(op.lengths),
        "tokens": tokens + VOCAB if op.fault == "token" else tokens,
        "targets": draw.integers(0, VOCAB, shape),
        "weights": np.full(shape, 3e38, np.float32) if op.fault == "weights" else weights.astype(np.float32),
        "old_logprobs": draw.normal(-3.5, 0.3, policy).astype(np.float32),
        "advantages": draw.normal(0, 1, policy).astype(np.float32),
        "loss": loss,
        "loss_config": {"no_such_setting": 1.0} if op.fault == "setting" else settings,
        "forward_only": not op.backward,
    }
