"""Why a row of a product has the same bits whatever rows stand beside it.

Measured in float32 with MKL on one thread: in x @ W.t(), the way forward, a row's bits depend on that row
alone as soon as x has 16 rows; with fewer, other kernels run. In x @ W, the way back, the same holds
while W [K, N] has at most about 1000 rows; with more it may take 200 rows of x. So on a CPU products that
adapters share, those with the frozen model, never have fewer rows than 16 (fillers are not looked at),
and the way back goes over 512 rows of W at a time, which costs nothing that could be measured for layers.
Elsewhere, and on several threads, a row's bits depend on the shape of the product and on its place there:
shared and alone agree within a tolerance. So what else was in a pass is noted (`compositions`), and who
runs again in a pass of the same shape gets the same bits.
"""

import torch
from torch import Tensor

_CPU_ROWS = 16
_CPU_BLOCK = 512


def floor_of(device: torch.device) -> int:
    """The fewest rows of a product with the frozen model."""
    return _CPU_ROWS if device.type == "cpu" else 1


def neighbours_matter(device: torch.device, dtype: torch.dtype, ranks: int = 1) -> bool:
    """Whether a row's bits depend on what else is in its pass.

    ranks: that add up their parts of it. From three on the order depends on where a number lies among all.
    """
    return device.type != "cpu" or dtype is not torch.float32 or torch.get_num_threads() > 1 or ranks > 2


def rows_at_least(floor: int, rows: Tensor) -> Tensor:
    """The rows, and zeros behind them up to the floor."""
    missing = floor - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])


def back_through(dy_TO: Tensor, weight_OI: Tensor) -> Tensor:
    """dy @ W [T, I], each row with bits of its own."""
    if dy_TO.device.type != "cpu" or dy_TO.dtype is not torch.float32 or len(weight_OI) <= _CPU_BLOCK:
        return dy_TO @ weight_OI
    dx_TI = dy_TO[:, :_CPU_BLOCK] @ weight_OI[:_CPU_BLOCK]
    for start in range(_CPU_BLOCK, len(weight_OI), _CPU_BLOCK):
        block = slice(start, start + _CPU_BLOCK)
        dx_TI.addmm_(dy_TO[:, block], weight_OI[block])
    return dx_TI
