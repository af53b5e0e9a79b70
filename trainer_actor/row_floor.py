"""Why a row of a product has the same bits whatever rows stand beside it.

Measured in float32 with MKL: in x @ W and x @ W.t() a row's bits depend on that row alone as soon as x has
16 rows (W up to 1024 long in the summed dimension; beyond, more rows are needed and bits may differ).
With fewer, other kernels run. So on a CPU, products that adapters share, those with the frozen model,
never have fewer rows than that; fillers are not looked at. Elsewhere, shared and alone agree within a
tolerance.
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
