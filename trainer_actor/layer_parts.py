"""Norm and activation of a layer, each as one step of autograd with a way back of its own.

Written out, they go over memory half as often as what autograd makes of the stock ones. They stand in
the layer spec.

Legend: T = packed positions, H = width of what is normed, F = of the MLP.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RmsNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, for CPUs: on CUDA torch
    has a kernel for it."""

    def __init__(self, config: object, hidden_size: int, eps: float, **_unused: object) -> None:  # noqa: ARG002
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(hidden_size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Normed.apply(x, self.weight, self._eps)  # type: ignore[no-untyped-call]
        return result


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_H, inverse)
        normed: Tensor = (wide * inverse).mul_(weight_H).to(x.dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """With g = dy * weight and r the inverse: dx = g r - x r^3 mean(g x)."""
        x, weight_H, inverse = ctx.saved_tensors
        wide, gradient = x.float(), torch.mul(dy.float(), weight_H)
        along = (gradient * wide).sum(dim=-1, keepdim=True)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return gradient.mul_(inverse).addcmul_(wide, along).to(dy.dtype), None, None


class SwiGlu(torch.nn.Module):
    """silu(first half) * second half. megatron-core takes it as the activation of its MLP."""

    def __init__(self, config: object) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, x_T12F: Tensor) -> Tensor:
        result: Tensor = _Gated.apply(x_T12F)  # type: ignore[no-untyped-call]
        return result


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T12F: Tensor) -> Tensor:
        gate, up = x_T12F.chunk(2, dim=-1)
        open_ = F.silu(gate)
        ctx.save_for_backward(x_T12F, open_)
        return open_ * up

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        x_T12F, open_ = ctx.saved_tensors
        gate, up = x_T12F.chunk(2, dim=-1)
        dx_T12F = torch.empty_like(x_T12F)
        dgate, dup = dx_T12F.chunk(2, dim=-1)
        torch.mul(dy, open_, out=dup)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=dgate)
        return dx_T12F
