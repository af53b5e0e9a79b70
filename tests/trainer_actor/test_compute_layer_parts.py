"""Norm and activation with ways back of their own: those of torch's own, forward and back."""

from collections.abc import Callable

import pytest
import torch
from loractl.trainer_actor.layer_parts import RmsNorm, SwiGlu

TYPES = [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)]


def through(module: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradient of the input."""
    draw = torch.Generator().manual_seed(0)
    x = (torch.randn(19, 1, 64, generator=draw) * 3).to(dtype).requires_grad_()
    y = module(x)
    y.backward(torch.randn(y.shape, generator=draw).to(dtype))
    assert x.grad is not None
    assert y.dtype is x.grad.dtype is dtype
    return [y.detach().double(), x.grad.double()]


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES, ids=str)
def test_the_norm_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    theirs = torch.nn.RMSNorm(64, eps=1e-5, dtype=dtype).requires_grad_(False)
    theirs.weight.normal_(1.0, 0.2)
    ours = RmsNorm(None, 64, 1e-5).to(dtype).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())

    torch.testing.assert_close(through(ours, dtype), through(theirs, dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES, ids=str)
def test_the_activation_is_silu_of_one_half_times_the_other(dtype: torch.dtype, tolerance: float) -> None:
    def written_out(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    torch.testing.assert_close(
        through(SwiGlu(None), dtype), through(written_out, dtype), rtol=tolerance, atol=tolerance
    )
