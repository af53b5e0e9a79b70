"""Slot AdamW: one adapter's step, on its own rows, with its own counters.

Semantics of megatron-core's DistributedOptimizer (0.16.1), which a test compares bit for bit:
float32 gradients and main weights, the global norm as the norm of the parts' norms, the clip
coefficient max_norm / (norm + 1e-6) applied when below 1 (clip_grads.py), then AdamW with decoupled
weight decay, then the weights rounded from the main weights.

Adapters step one after another. On a CPU one update of 8 adapters of 4.9 M numbers as a single row takes 0.9
to 1.1 times as long, and torch._foreach_ over the 8 rows 1.4 to 1.7 times (one thread and two): in pieces
that fit the cache an update is bound by its arithmetic already.
"""

import math

import torch
from torch import Tensor

from ..bus.errors import InvalidRequest, NotFinite
from .bank import MOMENTS, Row
from .passes import AdamParams, StepOutcome

_CLIP_EPSILON = 1e-6  # megatron-core, optimizer/clip_grads.py
# Beyond it, products and quotients of settings need not fit into float32, which torch refuses half way.
_MOST = 1e6
# So that a piece of everything fits into what a core has for itself: a megabyte.
_CPU_PIECE = 3 << 14
_CUDA_PIECE = 1 << 26


def adam_step(row: Row, params: AdamParams) -> StepOutcome:
    """Apply the row's gradients and drop them. Without gradients nothing changes.

    Raises:
        InvalidRequest: a setting out of range.
        NotFinite: the gradients' norm is not finite. Nothing changed; the gradients are still there.
        torch.OutOfMemoryError: no memory for the moments. Nothing changed.
    """
    _check(params)
    gradients = row.gradients
    if gradients is None:
        return StepOutcome(applied=False, step=row.step, grad_norm=0.0, tokens=row.tokens)
    norm = gradient_norm([gradients])
    if not math.isfinite(norm):
        raise NotFinite(
            f"the gradient norm is {norm}: the step was refused, and weights, moments and gradients are as "
            "they were; load a checkpoint to drop these gradients"
        )
    _hold_moments(row)
    _update(row, gradients, params, norm)
    outcome = StepOutcome(applied=True, step=row.step + 1, grad_norm=norm, tokens=row.tokens)
    row.step, row.tokens = outcome.step, 0
    row.drop("gradients")
    row.changed |= {"main", "exp_avg", "exp_avg_sq"}
    return outcome


def _hold_moments(row: Row) -> None:
    """Before the first step they are absent, which is zero. Both are taken before either is filled."""
    absent = [piece for piece in MOMENTS if row.piece(piece) is None]
    try:
        taken = [row.hold(piece) for piece in absent]
    except BaseException:
        for piece in absent:
            row.drop(piece)
        raise
    for moment in taken:
        moment.zero_()


def gradient_norm(gradients: list[Tensor]) -> float:
    """The L2 norm over all of them, as megatron-core's local_multi_tensor_l2_norm computes it."""
    norms = torch.stack([torch.linalg.vector_norm(each) for each in gradients])
    return float((torch.linalg.vector_norm(norms) ** 2).item() ** 0.5)


def _update(row: Row, gradients_N: Tensor, params: AdamParams, norm: float) -> None:
    """Clip, step and round, all of it for one piece after the other: what a piece needs stays in the cache."""
    clip = params.grad_clip_norm / (norm + _CLIP_EPSILON) if params.grad_clip_norm else 1.0
    on_cpu = row.main.device.type == "cpu"
    size = _CPU_PIECE * torch.get_num_threads() if on_cpu else _CUDA_PIECE
    denominator = torch.empty_like(row.main[:size])
    moments = (row.hold(piece) for piece in MOMENTS)
    for main, gradient, exp_avg, exp_avg_sq, weights in zip(
        *(torch.split(each, size) for each in (row.main, gradients_N, *moments, row.weights)), strict=True
    ):
        if clip < 1.0:
            gradient.mul_(clip)
        adamw_piece(main, gradient, exp_avg, exp_avg_sq, denominator[: len(main)], params, row.step + 1)
        if row.main is not row.weights:
            weights.copy_(main)


def adamw_piece(
    main: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    denominator: Tensor,
    params: AdamParams,
    step: int,
) -> None:
    """Operation by operation what torch's AdamW loop does (2.13, optim/adam.py, _single_tensor_adam), the
    one that megatron-core runs where Transformer Engine is absent, but with no temporaries of its own.

    torch's fused form is faster and ends in other last bits. denominator: memory to work in.
    """
    first_correction = 1 - params.beta1**step
    second_correction = 1 - params.beta2**step
    if params.weight_decay != 0:
        main.mul_(1 - params.learning_rate * params.weight_decay)
    exp_avg.lerp_(gradient, 1 - params.beta1)
    exp_avg_sq.mul_(params.beta2).addcmul_(gradient, gradient, value=1 - params.beta2)
    torch.sqrt(exp_avg_sq, out=denominator).div_(second_correction**0.5).add_(params.eps)
    main.addcdiv_(exp_avg, denominator, value=-(params.learning_rate / first_correction))


def _check(params: AdamParams) -> None:
    def refuse(name: str, value: float, wanted: str) -> InvalidRequest:
        return InvalidRequest(f"{name} is {value}; it must be {wanted}")

    for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
        value = getattr(params, name)
        if not (math.isfinite(value) and value >= 0):
            raise refuse(name, value, "a finite number and not negative")
    for name in ("learning_rate", "weight_decay", "eps"):
        if getattr(params, name) > _MOST:
            raise refuse(name, getattr(params, name), f"at most {_MOST:g}")
    for name in ("beta1", "beta2"):
        value = getattr(params, name)
        if not 0 <= value < 1:
            raise refuse(name, value, "at least 0 and below 1")
    # Padding and fresh moments are zero: with eps 0 in float32 they would become 0 / 0.
    if not (math.isfinite(params.eps) and float(torch.tensor(params.eps, dtype=torch.float32)) > 0):
        raise refuse("eps", params.eps, "a positive number that float32 can hold")
