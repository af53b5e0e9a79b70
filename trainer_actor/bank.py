"""The slot bank: every adapter's whole training state, one row of each piece per slot.

Pieces, all [slots, N]: weights (the model's type; what a pass multiplies with), gradients, main
weights, exp_avg and exp_avg_sq (float32). In float32 the weights are their own main weights, one
tensor: a copy would cost 4 bytes an element and could only ever differ by mistake. In bfloat16 the
weights are always the main weights rounded, so they never travel: host states leave them out.

Beside the rows, a record per slot: LoraSpec (with the seed), step, positions since the last step,
whether there are gradients. No random state: nothing is drawn after an adapter's birth (dropout is
0). Padding is zero in every piece and stays so: its gradients are zero, and AdamW turns a zero
with zero gradient and zero moments into zero.

Who lies where is not decided here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bus.messages import LoraSpec
from .row_layout import RowLayout
from .row_views import RowsViews


@dataclass(slots=True, kw_only=True)
class SlotRecord:
    """tokens: positions that went into the gradients."""

    lora: LoraSpec
    step: int = 0
    tokens: int = 0
    has_gradient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostState:
    """An adapter's whole state in host memory: the active parts of its row, end to end, float32.

    gradients None: there are none. Moments None: no step was taken yet, they are zero.
    """

    lora: LoraSpec
    step: int
    tokens: int
    main: Tensor
    gradients: Tensor | None
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None

    @property
    def has_gradients(self) -> bool:
        return self.gradients is not None

    def without_gradients(self) -> "HostState":
        return replace(self, gradients=None, tokens=0)

    @property
    def size_bytes(self) -> int:
        pieces = (self.main, self.gradients, self.exp_avg, self.exp_avg_sq)
        return sum(piece.nbytes for piece in pieces if piece is not None)


@dataclass(frozen=True, slots=True)
class ActiveRange:
    """One contiguous active part of a slot's row, as views of every piece."""

    weights: Tensor
    gradients: Tensor
    main: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Bank:
    def __init__(self, layout: RowLayout, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        def rows(kind: torch.dtype) -> Tensor:
            # Not zeroed: on a CPU, memory that no adapter has touched is not even taken.
            return torch.empty(slots, layout.size, dtype=kind, device=device)

        self.layout = layout
        self.slots = slots
        self.weights = rows(dtype)
        self.gradients = rows(torch.float32)
        self.main = self.weights if dtype is torch.float32 else rows(torch.float32)
        self.views = RowsViews(self.weights, layout)
        self.exp_avg = rows(torch.float32)
        self.exp_avg_sq = rows(torch.float32)
        self._records: list[SlotRecord | None] = [None] * slots
        self._touched = [True] * slots  # whether gradients and moments may be anything but zero

    def record(self, slot: int) -> SlotRecord:
        record = self._records[slot]
        assert record is not None, f"slot {slot} is free"
        return record

    def active(self, slot: int) -> list[ActiveRange]:
        """The parts of the slot's row that its adapter trains: one or two."""
        return [
            ActiveRange(
                self.weights[slot, start:stop],
                self.gradients[slot, start:stop],
                self.main[slot, start:stop],
                self.exp_avg[slot, start:stop],
                self.exp_avg_sq[slot, start:stop],
            )
            for start, stop in self.layout.ranges(self.record(slot).lora)
        ]

    def write_fresh(self, slot: int, lora: LoraSpec, main: Tensor) -> None:
        """Begin an adapter from its main weights [active_size], with no gradients and no moments."""
        self.copy_in(
            slot,
            HostState(lora=lora, step=0, tokens=0, main=main, gradients=None, exp_avg=None, exp_avg_sq=None),
        )

    def copy_out(self, slot: int) -> HostState:
        """A copy of the slot's state in host memory, pinned on CUDA. The slot keeps its own."""
        record = self.record(slot)
        state = HostState(
            lora=record.lora,
            step=record.step,
            tokens=record.tokens,
            main=self._to_host(self.main, slot, record.lora),
            gradients=self._to_host(self.gradients, slot, record.lora) if record.has_gradient else None,
            exp_avg=self._to_host(self.exp_avg, slot, record.lora) if record.step else None,
            exp_avg_sq=self._to_host(self.exp_avg_sq, slot, record.lora) if record.step else None,
        )
        self._finish_copies()
        return state

    def copy_in(self, slot: int, state: HostState) -> None:
        """Make the slot hold this state and nothing of what lay there before."""
        assert state.main.numel() == self.layout.active_size(state.lora)
        self._wipe(slot)
        self._touched[slot] = True
        # Sections that this adapter does not train count as zero in a pass that others train.
        self.weights[slot].zero_()
        self._from_host(state.main, self.main, slot, state.lora)
        if self.main is not self.weights:
            for start, stop in self.layout.ranges(state.lora):
                self.weights[slot, start:stop].copy_(self.main[slot, start:stop])
        for piece, rows in (
            (state.gradients, self.gradients),
            (state.exp_avg, self.exp_avg),
            (state.exp_avg_sq, self.exp_avg_sq),
        ):
            if piece is not None:
                self._from_host(piece, rows, slot, state.lora)
        self._finish_copies()
        self._records[slot] = SlotRecord(
            lora=state.lora,
            step=state.step,
            tokens=state.tokens,
            has_gradient=state.gradients is not None,
        )

    def clear(self, slot: int) -> None:
        """Free the slot. Its weights become NaN, so that whoever used them would notice at once."""
        if self._records[slot] is not None:
            self._wipe(slot)
            self.weights[slot].fill_(torch.nan)

    def _wipe(self, slot: int) -> None:
        """Forget who lay there and zero everything but the weights."""
        self._records[slot] = None
        if not self._touched[slot]:
            return
        for rows in (self.gradients, self.exp_avg, self.exp_avg_sq):
            rows[slot].zero_()
        if self.main is not self.weights:
            self.main[slot].zero_()
        self._touched[slot] = False

    def _to_host(self, rows: Tensor, slot: int, lora: LoraSpec) -> Tensor:
        host = torch.empty(self.layout.active_size(lora), dtype=rows.dtype, pin_memory=rows.is_cuda)
        for part, row_part in self._parts(host, rows, slot, lora):
            part.copy_(row_part, non_blocking=True)
        return host

    def _from_host(self, host: Tensor, rows: Tensor, slot: int, lora: LoraSpec) -> None:
        for part, row_part in self._parts(host, rows, slot, lora):
            row_part.copy_(part, non_blocking=True)

    def _parts(
        self, host: Tensor, rows: Tensor, slot: int, lora: LoraSpec
    ) -> Iterator[tuple[Tensor, Tensor]]:
        ranges = self.layout.ranges(lora)
        parts = torch.split(host, [stop - start for start, stop in ranges])
        for part, (start, stop) in zip(parts, ranges, strict=True):
            yield part, rows[slot, start:stop]

    def _finish_copies(self) -> None:
        # Copies to and from pinned memory run behind the host: nobody may read or reuse it before they end.
        if self.weights.is_cuda:
            torch.cuda.current_stream().synchronize()
