"""LoRA of many adapters at once: every linear of the model adds each token's own low-rank product.

The matrices of the adapters in use lie one below the other, so that a batch in which every token
has another adapter takes two products per linear: all tokens with all of A, then with all of B.
Between the two, a token's entries that are not its own adapter's ranks are set to zero. That is
exact and keeps adapters apart: what is foreign is overwritten and not multiplied, so an infinity in
it is gone, and B is finite (`torch_adapter` refuses others). A prompt chunk, many tokens of one
adapter, takes that adapter's slice alone.

Legend: M = tokens of a span, R = ranks of all adapters in use, I = inputs, O = outputs of a linear.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engine import VersionKey
from .torch_adapter import LoadedAdapter


@dataclass(frozen=True, slots=True)
class Span:
    """Some tokens of the batch and the ranks they use. foreign_MR: which of them not to; None: none."""

    tokens: slice
    ranks: slice
    foreign_MR: Tensor | None = None


@dataclass(slots=True)
class Assignment:
    """Whose the tokens of the next product are; one object, shared by all linears."""

    spans: Sequence[Span] = ()


class LoraLinear(nn.Module):
    """A linear of the base model, with the stacked matrices of the adapters in use."""

    def __init__(self, base: nn.Linear, assignment: Assignment) -> None:
        super().__init__()
        self.base = base
        self.assignment = assignment
        self.a_RI: Tensor | None = None
        self.b_RO: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        spans = self.assignment.spans
        if not spans or self.a_RI is None or self.b_RO is None:
            return y
        x_TI, y_TO = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for span in spans:
            inner_MR = F.linear(x_TI[span.tokens], self.a_RI[span.ranks])
            if span.foreign_MR is not None:
                inner_MR.masked_fill_(span.foreign_MR, 0.0)
            y_TO[span.tokens].addmm_(inner_MR, self.b_RO[span.ranks])
        return y


class LoraStack:
    """Which adapters are loaded, which of them are stacked in the linears, and who uses which."""

    def __init__(self, model: nn.Module, names: Iterable[str], device: torch.device) -> None:
        """Wrap every linear whose last name is among `names`."""
        self._device = device
        self._loaded: dict[VersionKey, LoadedAdapter] = {}
        self._stacked: dict[VersionKey, slice] = {}
        # By rank of the stack, the number of the adapter in `_stacked` that it belongs to.
        self._owner_R = torch.empty(0, dtype=torch.long, device=device)
        self._assignment = Assignment()
        self._linears: dict[str, LoraLinear] = {}
        wanted = set(names)
        for path, module in list(model.named_modules()):
            parent, _, name = path.rpartition(".")
            if name in wanted and isinstance(module, nn.Linear):
                self._linears[path] = LoraLinear(module, self._assignment)
                setattr(model.get_submodule(parent), name, self._linears[path])

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear, by its path in the model."""
        return {p: (one.base.in_features, one.base.out_features) for p, one in self._linears.items()}

    def add(self, key: VersionKey, adapter: LoadedAdapter) -> None:
        self._loaded.setdefault(key, adapter)

    def remove(self, key: VersionKey) -> None:
        self._loaded.pop(key, None)
        if key in self._stacked:
            self._stack(self._stacked.keys() - {key})

    def holds(self, key: VersionKey) -> bool:
        return key in self._loaded

    def modules(self, key: VersionKey) -> int:
        return len(self._loaded[key].modules)

    def prepare(self, used: set[VersionKey]) -> None:
        """Stack what the coming step uses. Leftovers stay while they cost less than a new stack."""
        stacked_ranks = sum(self._loaded[key].rank for key in self._stacked)
        used_ranks = sum(self._loaded[key].rank for key in used)
        if not used <= self._stacked.keys() or (used and used_ranks * 2 < stacked_ranks):
            self._stack(used)

    def assign(
        self, singles: Sequence[VersionKey | None], chunks: Iterable[tuple[VersionKey | None, int]]
    ) -> None:
        """Say whose the tokens of the next product are: one each, then chunks of so many tokens."""
        spans = self._shared_span(singles)
        first = len(singles)
        for key, count in chunks:
            if key is not None:
                spans.append(Span(slice(first, first + count), self._stacked[key]))
            first += count
        self._assignment.spans = spans

    def _shared_span(self, singles: Sequence[VersionKey | None]) -> list[Span]:
        used = {key for key in singles if key is not None}
        if not used:
            return []
        tokens = slice(0, len(singles))
        if len(used) == 1 and None not in singles:
            return [Span(tokens, self._stacked[used.pop()])]
        lowest = min(self._stacked[key].start for key in used)
        highest = max(self._stacked[key].stop for key in used)
        # A base token is of no adapter, so all ranks are foreign to it.
        number: dict[VersionKey | None, int] = {key: i for i, key in enumerate(self._stacked)}
        mine_M = torch.tensor([number.get(key, -1) for key in singles], device=self._device)
        return [Span(tokens, slice(lowest, highest), mine_M[:, None] != self._owner_R[lowest:highest])]

    def _stack(self, keys: Iterable[VersionKey]) -> None:
        self._stacked, first = {}, 0
        for key in sorted(keys):
            self._stacked[key] = slice(first, first + self._loaded[key].rank)
            first += self._loaded[key].rank
        counts = [ranks.stop - ranks.start for ranks in self._stacked.values()]
        self._owner_R = torch.repeat_interleave(torch.tensor(counts, dtype=torch.long, device=self._device))
        for path, linear in self._linears.items():
            self._stack_one(path, linear)

    def _stack_one(self, path: str, linear: LoraLinear) -> None:
        """An adapter that leaves this linear alone has zeros there, so that ranks agree everywhere."""
        a_parts, b_parts = [], []
        bound = False
        for key in self._stacked:
            module = self._loaded[key].modules.get(path)
            bound = bound or module is not None
            rank, weight = self._loaded[key].rank, linear.base.weight
            a_parts.append(weight.new_zeros(rank, weight.shape[1]) if module is None else module.a_RI)
            b_parts.append(weight.new_zeros(rank, weight.shape[0]) if module is None else module.b_RO)
        linear.a_RI = torch.cat(a_parts) if bound else None
        linear.b_RO = torch.cat(b_parts) if bound else None
