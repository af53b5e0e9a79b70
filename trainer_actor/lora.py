"""LoRA on megatron-core's parallel linears: what stands in the layer spec, and its autograd.

What the adapters of a pass add is `lora_pass`'s.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from .lora_pass import LoraPass
from .pass_frame import PassFrame
from .row_layout import Linear


class _AddLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, _anchor: Tensor, linear: Linear, lora: LoraPass) -> Tensor:
        saved = lora.add(linear, x.flatten(0, -2), y.view(-1, linear.outputs))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, *saved)
        ctx.linear, ctx.lora = linear, lora
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, *saved = ctx.saved_tensors
        linear: Linear = ctx.linear
        dx = ctx.lora.backward(linear, x.flatten(0, -2), saved, dy.reshape(-1, linear.outputs))
        return dx.view_as(x), dy, None, None, None


def add_lora(frame: PassFrame, linear: Linear, x: Tensor, y: Tensor, *, own_y: bool) -> Tensor:
    """y plus what the adapters of the running pass add here; in place if y is our own."""
    lora = frame.lora
    if lora is None or not lora.trains(linear):
        return y
    y = y if own_y else y.clone()
    result: Tensor = _AddLora.apply(x, y, lora.anchor, linear, lora)  # type: ignore[no-untyped-call]
    return result


class LoraColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """qkv and fc1. Stands in the layer spec; the backbone tells each one which it is."""

    def attach(self, frame: PassFrame, linear: Linear) -> None:
        assert (linear.inputs, linear.outputs) == (self.input_size, self.output_size)
        self._frame, self._linear = frame, linear

    def forward(self, input_: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_, *args, **kwargs)
        return add_lora(self._frame, self._linear, input_, output, own_y=True), bias


class LoraRowParallelLinear(RowParallelLinear):  # type: ignore[misc]  # megatron-core has no types
    """proj and fc2."""

    def attach(self, frame: PassFrame, linear: Linear) -> None:
        assert (linear.inputs, linear.outputs) == (self.input_size, self.output_size)
        self._frame, self._linear = frame, linear

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        # The reduction over ranks hands out a view of its own, which must not be changed in place.
        return add_lora(self._frame, self._linear, input_, output, own_y=False), bias
