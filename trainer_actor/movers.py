"""Carries states between rows, host memory and disk, one decided move at a time.

On a CPU a move is over when it is performed. On CUDA it may end behind others (see `copies`): a mark for
each adapter says when, and whoever touches its row or its copy passes the mark first.
"""

from dataclasses import dataclass
from typing import assert_never

import torch

from ..bus.errors import OutOfSlots
from ..bus.ids import AdapterId
from ..bus.messages import LoraSpec
from .bank import Bank, HostState, Row
from .copies import DONE, Copies, Mark, copies_for
from .moves import Draw, DropCopy, DropFile, Load, Move, Read, Spill, Vacate, WriteBack
from .row_copies import as_it_lies, fill, row_state_bytes, write_back
from .seeds import fresh_weights
from .spill import SpillStore

# Rows on their way out that may take memory beside those in slots, so that nobody waits for a copy.
_MOST_LEAVING = 4


@dataclass(slots=True)
class _Known:
    """copy: what host memory holds of it, if anything. mark: when copies of row and copy are through.
    row: while it has a slot."""

    lora: LoraSpec
    row: Row | None = None
    copy: HostState | None = None
    mark: Mark = DONE


class Movers:
    """Holds the host copies of all adapters it met."""

    def __init__(self, bank: Bank, spill: SpillStore, copies: Copies | None = None) -> None:
        self._bank = bank
        self._spill = spill
        self._copies = copies or copies_for(bank.memory.device)
        self._known: dict[AdapterId, _Known] = {}
        self._leaving: list[tuple[Mark, Row]] = []

    def lora_of(self, adapter: AdapterId) -> LoraSpec:
        return self._known[adapter].lora

    def fresh_bytes(self, lora: LoraSpec) -> int:
        """What an adapter takes in host memory as it begins: its main weights, float32."""
        return self._bank.layouts.of(lora).size * 4

    def changed_bytes(self, slot: int) -> int:
        """What the row's state takes in host memory by now; 0 if it is as the copy was when it was whole."""
        row = self._bank.row(slot)
        return row_state_bytes(row) if row.changed else 0

    def meet(self, adapter: AdapterId, lora: LoraSpec) -> None:
        self._known[adapter] = _Known(lora)

    def forget(self, adapter: AdapterId, slot: int | None) -> None:
        """Let go of row, copy and file. slot: the one it leaves, if it had one."""
        known = self._known.pop(adapter)
        self._take_out(known, slot)
        known.mark.wait()
        self._spill.drop(adapter)

    def adopt(self, adapter: AdapterId, state: HostState, slot: int | None) -> None:
        """Hold a state that came from elsewhere. slot: the one that the adapter leaves, if it had one."""
        known = self._known[adapter]
        self._take_out(known, slot)
        known.mark.wait()
        known.copy, known.mark = state, DONE

    def copy_of(self, adapter: AdapterId) -> HostState:
        """A whole copy, finished."""
        known = self._known[adapter]
        known.mark.wait()
        assert known.copy is not None
        return known.copy

    def row_of(self, adapter: AdapterId) -> HostState:
        """What the row of an adapter in a slot holds, filled as far as the device is concerned."""
        known = self._known[adapter]
        known.mark.before_compute()
        assert known.row is not None
        return as_it_lies(known.row)

    def hand_to_compute(self, adapter: AdapterId) -> None:
        """What the device is given to compute from here on finds the row filled."""
        self._known[adapter].mark.before_compute()

    def perform(self, move: Move) -> int:
        """Returns the bytes that travel. Whatever is raised leaves row, copy and file as they were."""
        adapter = move.adapter
        known = self._known[adapter]
        match move:
            case Draw():
                self._draw(known)
                return 0
            case Read(size=size):
                known.copy = self._spill.read(adapter, self._copies.host_piece)
                return size
            case Load(slot=slot):
                return self._load(known, slot)
            case WriteBack():
                return self._write_back(known)
            case Vacate(slot=slot):
                self._take_out(known, slot)
                return 0
            case Spill(size=size):
                self._spill.write(adapter, self.copy_of(adapter))
                return size
            case DropCopy():
                known.mark.wait()
                known.copy = None
                return 0
            case DropFile():
                self._spill.drop(adapter)
                return 0
            case _:
                assert_never(move)

    def _draw(self, known: _Known) -> None:
        drawn_N = fresh_weights(self._bank.layouts.of(known.lora), known.lora)
        main_N = self._copies.host_piece(drawn_N.numel()).copy_(drawn_N)
        known.copy = HostState(
            lora=known.lora, step=0, tokens=0, main=main_N, gradients=None, exp_avg=None, exp_avg_sq=None
        )

    def _load(self, known: _Known, slot: int) -> int:
        assert known.copy is not None
        self._give_back(most=_MOST_LEAVING)
        try:
            row = self._bank.open(slot, known.lora)
        except torch.OutOfMemoryError as error:
            raise OutOfSlots(
                "the device has no memory left for another adapter, though trainer.device_bytes has; "
                "lower trainer.device_bytes"
            ) from error
        try:
            moved = fill(row, known.copy, self._copies)
        except BaseException:
            self._copies.mark().wait()  # what began may still be writing to the row
            self._bank.close(slot)
            raise
        known.row, known.mark = row, self._copies.mark()
        return moved

    def _write_back(self, known: _Known) -> int:
        assert known.row is not None
        try:
            copied = write_back(known.row, known.copy, self._copies)
        except BaseException:
            self._copies.mark().wait()  # what began may still be writing to memory that is dropped here
            raise
        known.copy, known.mark = copied.state, self._copies.mark()
        return copied.size

    def _take_out(self, known: _Known, slot: int | None) -> None:
        """Free a slot. Given back at once, the row's memory could be computed in while a copy reads it."""
        if slot is None:
            return
        known.row = None
        self._leaving.append((known.mark, self._bank.take_out(slot)))
        self._give_back(most=_MOST_LEAVING)

    def _give_back(self, *, most: int) -> None:
        """Give rows back whose copies are through; wait for the oldest beyond `most` of them."""
        while self._leaving and (len(self._leaving) > most or self._leaving[0][0].done()):
            mark, row = self._leaving.pop(0)
            mark.wait()
            row.give_back()
