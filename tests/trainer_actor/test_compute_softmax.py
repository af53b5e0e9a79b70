"""Logits in blocks of rows: the formulas, and the same bits however large the blocks are."""

import pytest
import torch
from loractl.trainer_actor.softmax import normalizers, turn_into_gradient

ROWS, VOCAB = 13, 320


def logits() -> torch.Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)) * 4


def targets_and_slopes() -> tuple[torch.Tensor, torch.Tensor]:
    """Three targets a row, the same one twice in some."""
    draw = torch.Generator().manual_seed(2)
    targets = torch.randint(0, VOCAB, (ROWS, 3), generator=draw)
    targets[::2, 1] = targets[::2, 0]
    return targets, torch.randn(ROWS, 3, generator=draw)


def gradient(block: int, dtype: torch.dtype) -> torch.Tensor:
    turned = logits().to(dtype)
    targets, slopes = targets_and_slopes()
    turn_into_gradient(turned, normalizers(turned, block), targets, slopes, block)
    return turned


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_the_gradient_is_autograds(dtype: torch.dtype, tolerance: float) -> None:
    wanted = logits().to(dtype).double().requires_grad_()
    targets, slopes = targets_and_slopes()
    (torch.log_softmax(wanted, dim=1).gather(1, targets) * slopes).sum().backward()

    found = gradient(1 << 18, dtype)

    assert found.dtype is dtype
    assert wanted.grad is not None
    torch.testing.assert_close(found.double(), wanted.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_blocks_change_no_bit(rows: int, dtype: torch.dtype) -> None:
    whole = gradient(1 << 18, dtype)

    assert torch.equal(gradient(rows * VOCAB, dtype), whole)


def test_no_rows_are_no_work() -> None:
    assert normalizers(logits()[:0]).shape == (0, 1)
