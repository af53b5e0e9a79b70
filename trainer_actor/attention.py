"""Causal self-attention over packed sequences, and rotary positions that restart at each of them.

megatron-core's own core attention wants CUDA buffers and refuses packed sequences; its rotary
embedding moves itself to a CUDA device. Both are replaced through the points it offers for that:
the layer spec and the model's `rotary_pos_emb`. The same code runs on CPU and CUDA.

Legend: T = packed positions, P = with padding, n = sequences, S = their length, Q = query heads,
G = key-value groups, D = head dimension.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from .pass_frame import PassFrame


class PackedAttention(torch.nn.Module):
    """Stands where the layer spec has DotProductAttention; takes what megatron-core hands to it."""

    def __init__(self, *, frame: PassFrame, softmax_scale: float | None, **_unused: object) -> None:
        super().__init__()
        self._frame = frame
        self._scale = softmax_scale

    def forward(
        self, query_T1QD: Tensor, key_T1GD: Tensor, value_T1GD: Tensor, *_mask: None, **_: object
    ) -> Tensor:
        """Return [T, 1, Q * D]."""
        packing = self._frame.packing
        q, k, v = query_T1QD.squeeze(1), key_T1GD.squeeze(1), value_T1GD.squeeze(1)
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
        out_nQSD = F.scaled_dot_product_attention(
            q_nQSD, k_nGSD, v_nGSD, is_causal=True, scale=self._scale, enable_gqa=True
        )
        return out_nQSD.transpose(1, 2).reshape(q.shape[0], -1)


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


class PackedRotary(RotaryEmbedding):  # type: ignore[misc]  # megatron-core has no types
    """Rotary embedding with the model's own frequencies, for the positions of the present pass."""

    def __init__(self, *, frame: PassFrame, inverse_frequencies: Tensor) -> None:
        # Not RotaryEmbedding's own: it computes frequencies from a base, on a CUDA device.
        torch.nn.Module.__init__(self)
        self._frame = frame
        self.inv_freq = inverse_frequencies

    def forward(self, *_: object, **__: object) -> Tensor:
        """Angles [T, 1, 1, D] in float32, each frequency twice, as megatron-core applies them."""
        angles = torch.outer(self._frame.packing.positions.float(), self.inv_freq)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]
