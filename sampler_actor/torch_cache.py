"""Keys and values of the sequences that the embedded engine runs: banks of rows, grown on demand.

A bank holds all rows of one capacity, so attention over ragged lengths is one call per bank and
wastes at most half of it. Rows of a bank lie side by side: when one is released, the last takes its
place. A row belongs to one sequence and starts as zeros: attention gives positions beyond a
sequence's length the weight 0, but 0 times what a NaN-ridden predecessor left there would be NaN.

Legend: Y = layers, N = rows of a bank, K = key-value heads, C = capacity in tokens, D = head size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .torch_plan import row_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    layers: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * self.dtype.itemsize


@dataclass(slots=True)
class Bank:
    """keys, values: [Y, N, K, C, D]; the first len(owners) rows are in use."""

    capacity: int
    keys: Tensor
    values: Tensor
    owners: list[str] = field(default_factory=list)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class KvCache:
    """Rows by owner. How much may be held is the plan's business; half a bank more may lie idle."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._banks: dict[int, Bank] = {}
        self._bank_of: dict[str, Bank] = {}

    def claim(self, owner: str, tokens: int) -> None:
        """Give the owner a row of zeros for at least so many tokens."""
        assert owner not in self._bank_of, f"{owner} has a row already"
        bank = self._banks.setdefault(row_tokens(tokens), self._empty_bank(row_tokens(tokens)))
        if len(bank.owners) == bank.keys.shape[1]:
            _widen(bank)
        for tensor in bank.pair:
            tensor[:, len(bank.owners)].zero_()
        bank.owners.append(owner)
        self._bank_of[owner] = bank

    def grow(self, owner: str, tokens: int) -> None:
        """Make room for so many tokens, moving to a row of a larger bank when there is need."""
        old = self._bank_of[owner]
        if tokens <= old.capacity:
            return
        row = old.owners.index(owner)
        contents = [tensor[:, row].clone() for tensor in old.pair]
        self.release(owner)
        self.claim(owner, tokens)
        new, row = self.place(owner)
        for tensor, content in zip(new.pair, contents, strict=True):
            tensor[:, row, :, : old.capacity] = content

    def copy(self, donor: str, owner: str, tokens: int) -> None:
        """Make the owner's first tokens those of the donor."""
        source, source_row = self.place(donor)
        target, row = self.place(owner)
        for tensor, origin in zip(target.pair, source.pair, strict=True):
            tensor[:, row, :, :tokens] = origin[:, source_row, :, :tokens]

    def release(self, owner: str) -> None:
        bank = self._bank_of.pop(owner)
        row, last = bank.owners.index(owner), len(bank.owners) - 1
        if row != last:
            for tensor in bank.pair:
                tensor[:, row] = tensor[:, last]
            bank.owners[row] = bank.owners[last]
        bank.owners.pop()
        if not bank.owners:
            del self._banks[bank.capacity]

    def place(self, owner: str) -> tuple[Bank, int]:
        """Where the owner's row lies until the next claim, grow or release."""
        bank = self._bank_of[owner]
        return bank, bank.owners.index(owner)

    def _empty_bank(self, capacity: int) -> Bank:
        s = self._shape
        shape_YNKCD = (s.layers, 0, s.kv_heads, capacity, s.head_size)
        empty = torch.zeros(shape_YNKCD, dtype=s.dtype, device=s.device)
        return Bank(capacity, empty, empty.clone())


def _widen(bank: Bank) -> None:
    """Half as many rows again: copying is amortised, and little lies idle."""
    more = max(1, len(bank.owners) // 2)
    layers, _, *rest = bank.keys.shape
    bank.keys, bank.values = (
        torch.cat([tensor, tensor.new_zeros(layers, more, *rest)], dim=1) for tensor in bank.pair
    )
