"""Causal self-attention over packed sequences, with rotary positions that restart at each of them.

megatron-core's own core attention wants CUDA buffers and refuses packed sequences; its rotary
embedding moves itself to a CUDA device and computes sines anew in every layer. This module takes
the place of both through the layer spec. The same code runs on CPU and CUDA.

Legend: T = packed positions, P = with padding, n = sequences, S = their length, Q = query heads,
G = key-value groups, D = head dimension.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .pass_frame import PassFrame

# Up to here torch's CPU attention runs backward in bfloat16 slower than in float32, up to 15 times.
_SHORT = 256


class PackedAttention(torch.nn.Module):
    """Stands where the layer spec has DotProductAttention; takes what megatron-core hands to it."""

    def __init__(self, *, frame: "PassFrame", softmax_scale: float | None, **_unused: object) -> None:
        super().__init__()
        self._frame = frame
        self._scale = softmax_scale

    def forward(
        self, query_T1QD: Tensor, key_T1GD: Tensor, value_T1GD: Tensor, *_mask: None, **_: object
    ) -> Tensor:
        """Return [T, 1, Q * D]."""
        packing = self._frame.packing
        turn = self._frame.rotation
        q, k = (_rotated(x.squeeze(1), turn) for x in (query_T1QD, key_T1GD))
        v = value_T1GD.squeeze(1)
        if packing.source is not None and packing.place is not None:
            q, k, v = (_rearranged(x, packing.source, packing.place) for x in (q, k, v))
        outputs, start = [], 0
        for count, length in packing.batches:
            stop = start + count * length
            outputs.append(self._attend(q[start:stop], k[start:stop], v[start:stop], count))
            start = stop
        out_PH = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if packing.source is not None and packing.place is not None:
            out_PH = _Restored.apply(out_PH, packing.place)  # type: ignore[no-untyped-call]
        return out_PH.unsqueeze(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """One batch of `count` sequences of one length, [count * S, heads, D] each -> [count * S, Q * D]."""
        q_nQSD, k_nGSD, v_nGSD = (x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if q.device.type == "cpu" and q_nQSD.shape[2] <= _SHORT:
            q_nQSD, k_nGSD, v_nGSD = q_nQSD.float(), k_nGSD.float(), v_nGSD.float()
        out_nQSD = F.scaled_dot_product_attention(
            q_nQSD, k_nGSD, v_nGSD, is_causal=True, scale=self._scale, enable_gqa=True
        )
        return out_nQSD.transpose(1, 2).reshape(q.shape[0], -1).to(q.dtype)


def _rearranged(x: Tensor, source: Tensor, place: Tensor) -> Tensor:
    result: Tensor = _Rearranged.apply(x, source, place)  # type: ignore[no-untyped-call]
    return result


class _Rearranged(torch.autograd.Function):
    """x [T, …] -> [P, …] by `source`. Backward takes each token's own place and nothing of the padding:
    index_select's own backward would add up in an order that CUDA does not fix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.place = place
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.place), None, None


class _Restored(torch.autograd.Function):
    """x [P, …] -> [T, …] by `place`, the inverse of `_Rearranged`. Padding receives zero gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.place, ctx.padded = place, x.shape
        return x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        padded = gradient.new_zeros(ctx.padded)
        return padded.index_copy_(0, ctx.place, gradient), None


@dataclass(frozen=True, slots=True)
class Rotation:
    """cos and sin [T, 1, D / 2] of the angles at each position, in the model's type."""

    cos_T1h: Tensor
    sin_T1h: Tensor


def rotation(positions_T: Tensor, inverse_frequencies_h: Tensor, dtype: torch.dtype) -> Rotation:
    """The angles in float32, as Hugging Face has them; once per pass for all layers."""
    angles_T1h = torch.outer(positions_T.float(), inverse_frequencies_h)[:, None]
    return Rotation(angles_T1h.cos().to(dtype), angles_T1h.sin().to(dtype))


class _Rotated(torch.autograd.Function):
    """The halves (u, w) of every head become (u cos - w sin, w cos + u sin); backward turns back."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, turn: Rotation) -> Tensor:
        ctx.turn = turn
        return _turned(x_THD, turn.cos_T1h, turn.sin_T1h)

    @staticmethod
    def backward(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor, None]:
        return _turned(gradient_THD, ctx.turn.cos_T1h, -ctx.turn.sin_T1h), None


def _turned(x_THD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    half = x_THD.shape[-1] // 2
    first, second = x_THD[..., :half], x_THD[..., half:]
    turned_THD = torch.empty_like(x_THD, memory_format=torch.contiguous_format)
    torch.mul(first, cos_T1h, out=turned_THD[..., :half]).addcmul_(second, sin_T1h, value=-1)
    torch.mul(second, cos_T1h, out=turned_THD[..., half:]).addcmul_(first, sin_T1h)
    return turned_THD


def _rotated(x_THD: Tensor, turn: Rotation) -> Tensor:
    result: Tensor = _Rotated.apply(x_THD, turn)  # type: ignore[no-untyped-call]
    return result
