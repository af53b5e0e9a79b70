"""Why a row of a product has the same bits whatever rows stand beside it.

Measured in float32 with MKL on one thread: in x @ W.t(), the way forward, a row's bits depend on that row
alone as soon as x has 16 rows; with fewer, other kernels run. In x @ W, the way back, the same holds for
most shapes (all of SmolLM2-135M's, and of models with narrower layers), while for some wide ones, such
as 1024 x 1024, it takes 200 rows. So on a CPU, products that adapters share, those with the frozen
model, never have fewer rows than 16; fillers are not looked at. Elsewhere, shared and alone agree within
a tolerance.
"""

import torch
from torch import Tensor

_CPU_ROWS = 16


def floor_of(device: torch.device) -> int:
    """The fewest rows of a product with the frozen model."""
    return _CPU_ROWS if device.type == "cpu" else 1


def rows_at_least(floor: int, rows: Tensor) -> Tensor:
    """The rows, and zeros behind them up to the floor."""
    missing = floor - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
