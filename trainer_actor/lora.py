"""LoRA on megatron-core's parallel linears: what stands in the layer spec, and its autograd.

What the adapters of a pass add is `lora_pass`'s.

Tensor parallel ranks share a linear as megatron-core has it: of qkv and fc1 each has some outputs, of proj and
fc2 some inputs. Everything here is linear in the part that a rank has, so adapters need no communication of
their own. Each rank multiplies with its inputs' columns of A and its outputs' rows of B, and what it adds rides
on the frozen linear's sum over ranks: of y where inputs are shared, of dx where outputs are. Its gradients are
then its own rows or columns of one matrix, and its term of the sum that is the other, so the sum of all ranks'
rows is the whole gradient: `model_pass` adds them up once a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from .linears import Linear
from .lora_pass import LoraPass
from .pass_frame import PassFrame
from .row_floor import back_through
from .tensor_group import TensorGroup


class _LoraLinear(torch.autograd.Function):
    """The frozen linear and what the adapters of the pass add to it, as one step of autograd: what
    adapters do to the gradient of x is added to the linear's own in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _anchor: Tensor | None, weight_OI: Tensor, bias_O: Tensor | None, at: "_Place"
    ) -> Tensor:
        x_TI = x.flatten(0, -2)
        y_TO = x_TI @ weight_OI.t()
        if bias_O is not None:
            y_TO += bias_O
        saved = at.lora.add(at.linear, x_TI, y_TO)
        if at.shares_inputs:
            at.group.sum(y_TO)
        ctx.save_for_backward(weight_OI, *((x, *saved) if saved else ()))
        ctx.at, ctx.shape = at, x.shape
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        weight_OI, *kept = ctx.saved_tensors
        at: _Place = ctx.at
        dy_TO = dy.reshape(-1, len(weight_OI))
        dx_TI = back_through(dy_TO, weight_OI) if ctx.needs_input_grad[0] else None
        if kept:
            x, *saved = kept
            at.lora.backward(at.linear, x.flatten(0, -2), saved, dy_TO, dx_TI)
        if dx_TI is not None and not at.shares_inputs:
            at.group.sum(dx_TI)
        at.alive()
        return None if dx_TI is None else dx_TI.view(ctx.shape), None, None, None, None


@dataclass(frozen=True, slots=True)
class _Place:
    """linear: what this rank computes of it. shares_inputs: each rank of the group has some; else some outputs."""

    linear: Linear
    lora: LoraPass
    alive: Callable[[], None]
    group: TensorGroup
    shares_inputs: bool


class _LoraModule(torch.nn.Module):
    """What both kinds share. Nothing of megatron-core's forward is left to do but the product and the sum."""

    shares_inputs: bool
    weight: Tensor
    bias: Tensor | None
    skip_bias_add: bool

    def attach(self, frame: PassFrame, linear: Linear, group: TensorGroup) -> None:
        assert (linear.outputs, linear.inputs) == self.weight.shape
        # Else it would be in the sum once for each rank.
        assert self.bias is None or self.skip_bias_add or not self.shares_inputs
        self._frame, self._linear, self._group = frame, linear, group

    def forward(self, input_: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        self._frame.alive()
        lora = self._frame.lora
        if lora is None:
            base: tuple[Tensor, Tensor | None] = super().forward(input_, *args, **kwargs)
            return base
        own, left = (None, self.bias) if self.skip_bias_add else (self.bias, None)
        # The same products whether anybody trains this linear or not: others' doing must not change my bits.
        anchor = lora.anchor if lora.trains(self._linear) else None
        place = _Place(self._linear, lora, self._frame.alive, self._group, self.shares_inputs)
        y: Tensor = _LoraLinear.apply(input_, anchor, self.weight, own, place)  # type: ignore[no-untyped-call]
        return y, left


class LoraColumnParallelLinear(_LoraModule, ColumnParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """qkv and fc1. Stands in the layer spec; the backbone tells each one which it is."""

    shares_inputs = False


class LoraRowParallelLinear(_LoraModule, RowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """proj and fc2."""

    shares_inputs = True
