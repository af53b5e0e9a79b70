"""The bank: every resident adapter's whole training state, one row each, exactly as large as the adapter.

Pieces, all [N] over the adapter's own layout: weights (what a pass multiplies with; the model's type, but
float32 on a CPU, where small products in bfloat16 take ten times as long), main weights, gradients,
exp_avg and exp_avg_sq (float32). In float32 the weights are their own main weights, one tensor: a copy
would cost 4 bytes an element and could only ever differ by mistake. In bfloat16 the weights are always
the main weights rounded, so they never travel: host states leave them out. Gradients and moments take
memory from their first use on; absent, they are all zero.

Beside the pieces: LoraSpec (with the seed), step, and positions since the last step. No random state:
nothing is drawn after an adapter's birth (dropout is 0). Padding is zero in every piece and stays so: its
gradients are zero, and AdamW turns a zero with zero gradient and zero moments into zero.

Who lies where is not decided here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..bus.messages import LoraSpec
from .row_layout import RowLayout, RowLayouts
from .row_memory import RowMemory
from .row_views import RowViews

Piece = Literal["main", "gradients", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Piece, ...] = ("exp_avg", "exp_avg_sq")
PIECES: tuple[Piece, ...] = ("main", "gradients", *MOMENTS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostState:
    """An adapter's whole state in host memory: pieces [N] as in its row, float32, padding included.

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
    def pieces(self) -> dict[Piece, Tensor]:
        """Those that are there."""
        held: dict[Piece, Tensor | None] = {
            "main": self.main,
            "gradients": self.gradients,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
        }
        return {name: piece for name, piece in held.items() if piece is not None}

    @property
    def size_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces.values())


class Row:
    """One adapter's state on the device.

    step: optimizer steps taken. tokens: positions that went into the gradients. changed: pieces that
    differ from the copy in host memory, if one was kept; whoever copies empties it. A piece that is
    absent here is zero, whatever such a copy holds.
    """

    def __init__(self, lora: LoraSpec, layout: RowLayout, dtype: torch.dtype, memory: RowMemory) -> None:
        self.lora = lora
        self.layout = layout
        self.step = 0
        self.tokens = 0
        self.changed: set[Piece] = set()
        self._memory = memory
        self._held: dict[Piece, RowViews] = {}
        self.views = memory.take(layout, dtype)
        if dtype is torch.float32:
            self._held["main"] = self.views
        else:
            try:
                self.hold("main")
            except BaseException:
                self.give_back()
                raise

    @property
    def weights(self) -> Tensor:
        return self.views.row_N

    @property
    def main(self) -> Tensor:
        return self._held["main"].row_N

    @property
    def gradients(self) -> Tensor | None:
        return self.piece("gradients")

    @property
    def exp_avg(self) -> Tensor | None:
        return self.piece("exp_avg")

    @property
    def exp_avg_sq(self) -> Tensor | None:
        return self.piece("exp_avg_sq")

    def piece(self, piece: Piece) -> Tensor | None:
        held = self._held.get(piece)
        return None if held is None else held.row_N

    def hold(self, piece: Piece) -> Tensor:
        """The piece's memory; if it had none, some that the caller must fill.

        Raises torch.OutOfMemoryError: the row is as it was.
        """
        if piece not in self._held:
            self._held[piece] = self._memory.take(self.layout, torch.float32)
        return self._held[piece].row_N

    def drop(self, piece: Piece) -> None:
        """From here on the piece is zero."""
        assert piece != "main"
        if (views := self._held.pop(piece, None)) is not None:
            self._memory.give(views)
        self.changed.discard(piece)

    def round_weights(self) -> None:
        """After a change of the main weights."""
        if self.main is not self.weights:
            self.weights.copy_(self.main)

    def join(self, gradients: RowViews, tokens: int) -> None:
        """Add gradients [N], finished and finite, whose memory is the row's from here on."""
        present = self.gradients
        if present is None:
            self._held["gradients"] = gradients
        else:
            present.add_(gradients.row_N)
            self._memory.give(gradients)
        self.tokens += tokens
        self.changed.add("gradients")

    def give_back(self) -> None:
        """Nobody uses the row from here on."""
        held = {id(views): views for views in (self.views, *self._held.values())}
        for views in held.values():
            self._memory.give(views)
        self._held.clear()


class Bank:
    """The rows, by slot: a number with a row or nothing."""

    def __init__(self, layouts: RowLayouts, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layouts = layouts
        self.dtype = dtype
        self.memory = RowMemory(device)
        self._rows: list[Row | None] = [None] * slots

    def row(self, slot: int) -> Row:
        row = self._rows[slot]
        assert row is not None, f"slot {slot} is free"
        return row

    def new_row(self, lora: LoraSpec) -> Row:
        """A row in no slot. Its weights are the caller's to fill. Raises torch.OutOfMemoryError."""
        return Row(lora, self.layouts.of(lora), self.dtype, self.memory)

    def open(self, slot: int, lora: LoraSpec) -> Row:
        """A row for a free slot. Its weights are the caller's to fill. Raises torch.OutOfMemoryError."""
        assert self._rows[slot] is None, f"slot {slot} is in use"
        row = self._rows[slot] = self.new_row(lora)
        return row

    def close(self, slot: int) -> None:
        """Free the slot; closing a free one is fine."""
        row, self._rows[slot] = self._rows[slot], None
        if row is not None:
            row.give_back()

    def take_out(self, slot: int) -> Row:
        """Free the slot; the row is the caller's to give back."""
        row, self._rows[slot] = self.row(slot), None
        return row

    def copy_in(self, slot: int, state: HostState) -> Row:
        """Make the slot hold this state and nothing of what lay there before."""
        assert state.main.numel() == self.layouts.of(state.lora).size
        self.close(slot)
        row = self.open(slot, state.lora)
        try:
            for piece in PIECES:
                source: Tensor | None = getattr(state, piece)
                if source is not None:
                    row.hold(piece).copy_(source, non_blocking=True)
        except BaseException:
            self.close(slot)
            raise
        row.round_weights()
        row.step, row.tokens = state.step, state.tokens
        # Copies from pinned memory run behind the host: nobody may reuse it before they end.
        if self.memory.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return row
