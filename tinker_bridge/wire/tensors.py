"""Tensors as requests carry them: dense, or CSR (compressed sparse rows). Checked here, then made whole.

Legend: R = rows, K = columns, L = listed cells.
"""

import math
from dataclasses import dataclass

import numpy as np

from ...bus.errors import InvalidData
from ...bus.messages import Floats, Ints

# A few listed cells may claim a shape of any size; this is what is made whole: 128 MiB of int64.
MOST_CELLS = 2**24

_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Csr:
    """Where the values of a CSR tensor lie: row i has the columns col[crow[i]:crow[i + 1]].

    crow [R + 1]; col [L], rising within a row.
    """

    crow: Ints
    col: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """values: flat, all cells or the listed ones. They fit `shape`, see `tensor`."""

    values: Ints | Floats
    shape: tuple[int, ...]
    csr: Csr | None = None

    @property
    def holds_ints(self) -> bool:
        return self.values.dtype.kind == "i"

    def whole(self, *, unlisted: int = 0) -> Ints | Floats:
        """All cells, in `shape`."""
        if self.csr is None:
            return self.values.reshape(self.shape)
        cells = np.full(self.shape, unlisted, dtype=self.values.dtype)
        cells.ravel()[listed_cells(self.csr, self.shape[1])] = self.values
        return cells


def tensor(
    values: Ints | Floats, shape: tuple[int, ...] | None, csr: Csr | None = None, *, what: str
) -> Tensor:
    """A tensor whose parts fit each other. shape None is that of a list. what: names it in messages.

    Raises:
        InvalidData: the parts do not fit.
    """
    if shape is None:
        shape = (values.size,)
    if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise InvalidData(f"{what} has the impossible shape {shape_text(shape)}")
    if csr is not None:
        _check_csr(csr, shape, values.size, what)
    elif math.prod(shape) != values.size:
        raise InvalidData(f"{what} has {values.size} values, which do not fill its shape {shape_text(shape)}")
    return Tensor(values=values, shape=shape, csr=csr)


def listed_cells(csr: Csr, columns: int) -> Ints:
    """Flat indices of the listed cells [L]."""
    rows = np.repeat(np.arange(csr.crow.size - 1), np.diff(csr.crow))
    return rows * columns + csr.col


def _check_csr(csr: Csr, shape: tuple[int, ...], listed: int, what: str) -> None:
    if len(shape) != 2:
        raise InvalidData(
            f"{what} is sparse and has the shape {shape_text(shape)}: sparse ones have two dimensions"
        )
    if math.prod(shape) > MOST_CELLS:
        raise InvalidData(f"{what} has the shape {shape_text(shape)}: at most {MOST_CELLS} cells are taken")
    crow, col = csr.crow, csr.col
    # The range of crow first: its differences could wrap around.
    sound = crow.size == shape[0] + 1 and col.size == listed
    sound = (
        sound and crow[0] == 0 and crow[-1] == listed and int(crow.min()) >= 0 and int(crow.max()) <= listed
    )
    sound = sound and bool((np.diff(crow) >= 0).all())
    sound = sound and (listed == 0 or (int(col.min()) >= 0 and int(col.max()) < shape[1]))
    # Rising cells mean rising columns in every row: none twice.
    if not sound or not bool((np.diff(listed_cells(csr, shape[1])) > 0).all()):
        raise InvalidData(f"{what}: its row and column indices do not describe {shape_text(shape)} cells")


def shape_text(shape: tuple[int, ...]) -> str:
    """For messages, which stay short."""
    sizes = [str(size) for size in shape[:4]] + ["…"] * (len(shape) > 4)
    return "(" + ", ".join(sizes) + ("," if len(shape) == 1 else "") + ")"
