"""A row of a product with the frozen model has the same bits whatever rows stand beside it."""

import pytest
import torch
from loractl.trainer_actor.row_floor import back_through

SHAPES = [
    (1024, 192),
    (1000, 192),
    (1024, 576),
    (1024, 1024),
    (2048, 1024),
    (4096, 1024),
    (320, 64),
    (513, 96),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_on_the_way_back_have_bits_of_their_own_from_sixteen_on(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight_OI = torch.randn(shape)
    dy_TO = torch.randn(256, shape[0])

    together = back_through(dy_TO, weight_OI)

    for rows in (16, 17, 40, 100, 160, 191, 200):
        assert torch.equal(back_through(dy_TO[:rows].contiguous(), weight_OI), together[:rows]), rows
    torch.testing.assert_close(together, dy_TO @ weight_OI, rtol=1e-4, atol=1e-3)
