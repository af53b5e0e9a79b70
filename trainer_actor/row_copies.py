"""A row's way to host memory and back: only pieces that changed, into the buffers that are there already.

What is started here may end later (see `copies`): whoever calls marks the point and sees to it that
everyone waits.
"""

from dataclasses import dataclass

from torch import Tensor

from .bank import PIECES, HostState, Piece, Row
from .copies import Copies


@dataclass(frozen=True, slots=True)
class Copied:
    """size: bytes that travel."""

    state: HostState
    size: int


def row_state_bytes(row: Row) -> int:
    """What the row's state takes in host memory as it is now."""
    return sum(piece.nbytes for name in PIECES if (piece := row.piece(name)) is not None)


def as_it_lies(row: Row) -> HostState:
    """The row's state as it is now, on the device: whoever reads it does so at once."""
    return HostState(
        lora=row.lora,
        step=row.step,
        tokens=row.tokens,
        main=row.main,
        gradients=row.gradients,
        exp_avg=row.exp_avg,
        exp_avg_sq=row.exp_avg_sq,
    )


def write_back(row: Row, kept: HostState | None, copies: Copies) -> Copied:
    """Copy the row to host memory, where `kept` is what was there of it before and is overwritten.

    The row counts as unchanged only at the end: a copy that fails leaves `kept` behind it as before.

    Raises:
        OutOfSlots: no host memory.
    """
    pieces: dict[Piece, Tensor] = {}
    size = 0
    copies.follow()
    for name in PIECES:
        source = row.piece(name)
        if source is None:
            continue
        buffer: Tensor | None = None if kept is None else getattr(kept, name)
        if buffer is None or name in row.changed:
            if buffer is None or not copies.suits(buffer):  # as of a state that came from a checkpoint
                buffer = copies.host_piece(source.numel())
            copies.copy(buffer, source)
            size += source.nbytes
        pieces[name] = buffer
    state = HostState(
        lora=row.lora,
        step=row.step,
        tokens=row.tokens,
        main=pieces["main"],
        gradients=pieces.get("gradients"),
        exp_avg=pieces.get("exp_avg"),
        exp_avg_sq=pieces.get("exp_avg_sq"),
    )
    row.changed.clear()
    return Copied(state, size)


def fill(row: Row, state: HostState, copies: Copies) -> int:
    """Make a new row hold a state. Returns the bytes that travel."""
    sources: dict[Piece, Tensor] = {
        name: piece for name in PIECES if (piece := getattr(state, name)) is not None
    }
    targets = {name: row.hold(name) for name in sources}
    # Only now: the memory may have been let go by something that the device still computes.
    copies.follow()
    for name, source in sources.items():
        copies.copy(targets[name], source)
    if row.main is not row.weights:
        copies.copy(row.weights, row.main)  # rounded on the device, behind the copy that brings them
    row.step, row.tokens = state.step, state.tokens
    row.changed.clear()
    return state.size_bytes
