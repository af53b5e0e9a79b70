"""Training states on disk, behind the host memory: `<state>/spill/<adapter>.safetensors`.

Only for as long as this trainer lives: a restart goes on from checkpoints, so the directory is wiped
when it is opened, and nothing is synced. What each file holds is remembered here, with a checksum:
a file that was damaged is noticed, never trained on.

Files are written and read by hand, in the safetensors layout: straight from and into the buffers of a
state, where a library's own copy would take as much memory again as a budget has just run out of.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import structlog
import torch
from torch import Tensor

from ..bus.disk_room import check_free
from ..bus.errors import StorageFailed
from ..bus.ids import AdapterId
from .bank import PIECES, HostState, Piece
from .durable_files import open_plain, storage_errors

log = structlog.get_logger()

_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What a file holds. header: its first bytes. numel: N. checksum: CRC-32 of all behind the header."""

    file: Path
    header: bytes
    pieces: tuple[Piece, ...]
    numel: int
    checksum: int
    outline: HostState


class SpillStore:
    def __init__(self, directory: Path) -> None:
        """Raises StorageFailed: the directory cannot be wiped or made."""
        self._directory = directory
        self._kept: dict[AdapterId, _Kept] = {}
        with storage_errors("make room for training states on disk"):
            if directory.exists():
                shutil.rmtree(directory)
            directory.mkdir(parents=True)

    def write(self, adapter: AdapterId, state: HostState) -> None:
        """Replace the adapter's file, if it has one.

        Raises:
            StorageFailed: the disk is full or refused. The old file, if any, is whole.
        """
        what = "set a training state aside on disk"
        check_free(self._directory, state.size_bytes, what=what)
        pieces = tuple(name for name in PIECES if getattr(state, name) is not None)
        header = _header(state, pieces)
        file = self._directory / f"{adapter}.safetensors"
        aside = file.with_suffix(".aside")
        try:
            with storage_errors(what):
                with aside.open("wb", buffering=0) as opened:
                    opened.write(header)
                    checksum = _write_all(opened, [getattr(state, name) for name in pieces])
                aside.replace(file)
        except BaseException:
            with suppress(OSError):  # what is left of it, the next start wipes
                aside.unlink()
            raise
        self._kept[adapter] = _Kept(
            file=file,
            header=header,
            pieces=pieces,
            numel=state.main.numel(),
            checksum=checksum,
            outline=_without_pieces(state),
        )

    def read(self, adapter: AdapterId, new_piece: Callable[[int], Tensor]) -> HostState:
        """The state that was written. new_piece: gives memory for so many float32 numbers.

        Raises:
            StorageFailed: the file cannot be read, or is not what was written.
        """
        kept = self._kept[adapter]
        pieces: dict[Piece, Tensor] = {name: new_piece(kept.numel) for name in kept.pieces}
        what = "read a training state from disk"
        with storage_errors(what), open_plain(kept.file) as opened:
            whole = os.fstat(opened.fileno()).st_size == len(kept.header) + sum(
                each.nbytes for each in pieces.values()
            )
            whole = whole and opened.read(len(kept.header)) == kept.header
            whole = whole and _read_all(opened, list(pieces.values())) == kept.checksum
        if not whole:
            raise StorageFailed(
                f"{kept.file} is damaged: it is not what was written; load a checkpoint into the adapter (load_state, "
                "or `loractl train` with --resume) to go on from there"
            )
        return replace(
            kept.outline,
            main=pieces["main"],
            gradients=pieces.get("gradients"),
            exp_avg=pieces.get("exp_avg"),
            exp_avg_sq=pieces.get("exp_avg_sq"),
        )

    def drop(self, adapter: AdapterId) -> None:
        """Remove the adapter's file, if it has one."""
        kept = self._kept.pop(adapter, None)
        if kept is None:
            return
        try:
            kept.file.unlink(missing_ok=True)
        except OSError as error:
            # Nobody reads it any more, and the next start wipes it.
            log.warning("spill.file_stays", path=str(kept.file), reason=str(error))


def _header(state: HostState, pieces: tuple[Piece, ...]) -> bytes:
    """The safetensors header: its length as 8 bytes, then JSON, padded so that numbers begin aligned."""
    size = state.main.nbytes
    described: dict[str, object] = {
        name: {"dtype": "F32", "shape": [state.main.numel()], "data_offsets": [at * size, (at + 1) * size]}
        for at, name in enumerate(pieces)
    }
    described["__metadata__"] = {"step": str(state.step), "tokens": str(state.tokens)}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(opened: BinaryIO, pieces: list[Tensor]) -> int:
    checksum = 0
    for chunk in _chunks(pieces):
        checksum = zlib.crc32(chunk, checksum)
        left = chunk
        while left:
            left = left[opened.write(left) :]
    return checksum


def _read_all(opened: BinaryIO, pieces: list[Tensor]) -> int:
    """Fill the pieces; returns the checksum of what is in them then."""
    checksum = 0
    for chunk in _chunks(pieces):
        left = chunk
        while left and (count := opened.readinto(left)):  # type: ignore[attr-defined]
            left = left[count:]
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _chunks(pieces: list[Tensor]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece.view(torch.uint8).numpy().data)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _without_pieces(state: HostState) -> HostState:
    empty = state.main.new_empty(0)
    return replace(state, main=empty, gradients=None, exp_avg=None, exp_avg_sq=None)
