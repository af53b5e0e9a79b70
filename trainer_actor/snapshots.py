"""Snapshots on disk: what an adapter goes on from after a crash, without anybody's asking.

`<state>/adapters/<id>/snapshots/<number>/` holds a safetensors file for each piece of the training state
and `snapshot.json`, all written aside and renamed. A piece that did not change since the snapshot before is
the same file under a second name, so a forward_backward costs its gradients and no weights. Numbers only
grow, over snapshots and checkpoints together: the newest of both is known without trusting a clock, and the
directory with the highest number is never removed, so no number comes back. Whatever does not have this
shape, or does not match its digests, is no snapshot.

When one is taken is decided in `snapshot_policy`; which of them count is the journal's to say.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from safetensors import SafetensorError
from torch import Tensor

from ..bus.disk_room import check_free
from ..bus.errors import CheckpointMismatch
from ..bus.ids import AdapterId
from ..bus.layout import StateLayout
from ..bus.messages import LoraSpec
from .bank import PIECES
from .checkpoint_state import check_geometry
from .durable_files import (
    decoded,
    file_digest,
    file_size,
    is_linked,
    is_number,
    link_file,
    new_directory,
    next_number,
    own_directories,
    read_description,
    refuse_links,
    remove_directory,
    storage_errors,
    sweep,
)
from .state_files import Written, read_tensors, write_tensors
from .windows import Window

log = structlog.get_logger()

_DESCRIPTION = "snapshot.json"
_WHAT = "take a snapshot"

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """One whole snapshot. pieces: the file of each. base: see `registry`. metadata: see `checkpoint_state`.

    window: as it was then. digest: of the state alone, so equal states have equal ones.
    """

    adapter: AdapterId
    number: int
    step: int
    lora: LoraSpec
    base: str
    window: Window
    metadata: dict[str, str]
    pieces: dict[str, Written]
    digest: str

    @property
    def name(self) -> str:
        return str(self.number)

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to be a snapshot. tensors: of each piece that changed, by name; unchanged: pieces that are as in
    `before`, which is there when there are any."""

    adapter: AdapterId
    step: int
    lora: LoraSpec
    base: str
    window: Window
    metadata: dict[str, str]
    tensors: Mapping[str, Tensors]
    unchanged: tuple[str, ...] = ()
    before: SnapshotRecord | None = None


@dataclass(frozen=True, slots=True)
class _Sealed:
    """sha256: of the record as it is written, so that no bit of it changes unseen."""

    record: msgspec.Raw
    sha256: str


class Snapshots:
    """Those of every adapter, as the disk holds them. Remembers only which of them the journal has."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        self._kept: dict[AdapterId, int] = {}

    def all(self, adapter: AdapterId) -> list[SnapshotRecord]:
        """Oldest first; their files may be damaged. Raises StorageFailed."""
        with storage_errors("look for snapshots"):
            found = [self._read(path) for path in self._directories(adapter)]
        return sorted((each for each in found if each is not None), key=lambda each: each.number)

    def newest(self, adapter: AdapterId) -> SnapshotRecord | None:
        return next(reversed(self.all(adapter)), None)

    def find(self, adapter: AdapterId, name: str) -> SnapshotRecord:
        """Raises CheckpointMismatch: there is none of this name, or its description is damaged."""
        record = self._read(self._layout.snapshots(adapter) / name) if is_number(name) else None
        if record is None:
            raise CheckpointMismatch(f"snapshot {name!r} of the adapter is damaged or not there")
        return record

    def check(self, record: SnapshotRecord, lora: LoraSpec, base: str) -> None:
        """Raises CheckpointMismatch: another geometry or base, or a file that is not what was written."""
        check_geometry(f"snapshot {record.name}", (record.lora, record.base), (lora, base))
        for piece, written in record.pieces.items():
            try:
                whole = file_digest(self._file(record, piece)) == written.digest
            except OSError as error:
                log.warning(
                    "snapshot.not_read", adapter=record.adapter, number=record.number, reason=str(error)
                )
                whole = False
            if not whole:
                raise CheckpointMismatch(
                    f"snapshot {record.name} is damaged: its {piece} are not what was written"
                )

    def load(self, record: SnapshotRecord) -> tuple[Tensors, dict[str, str]]:
        """All tensors, as `<piece>/<name>`, and what they belong to. Raises CheckpointMismatch: as `check`."""
        self.check(record, record.lora, record.base)
        tensors: Tensors = {}
        for piece in record.pieces:
            try:
                read, _ = read_tensors(self._file(record, piece))
            except (OSError, SafetensorError, RuntimeError) as error:
                raise CheckpointMismatch(
                    f"snapshot {record.name} is damaged: {piece} cannot be read"
                ) from error
            tensors |= {f"{piece}/{name}": tensor for name, tensor in read.items()}
        return tensors, record.metadata

    def has(self, record: SnapshotRecord) -> bool:
        """Whether its files are all there, as far as their sizes tell: what reuses them need not write them."""
        return self._read(self._directory(record)) == record

    # --- writing ---------------------------------------------------------------------------------

    def write(self, draft: Draft) -> SnapshotRecord:
        """Make it a whole snapshot. Touches nothing but files.

        Raises:
            StorageFailed: no space, or the disk refused. Nothing is there then.
        """
        home = self._layout.snapshots(draft.adapter)
        refuse_links(home, self._layout.adapters, what=_WHAT)
        size_bytes = sum(each.nbytes for named in draft.tensors.values() for each in named.values())
        check_free(home, size_bytes, what=_WHAT)
        checkpoints = self._layout.adapter(draft.adapter) / "checkpoints"
        with storage_errors(_WHAT):
            number = next_number(home, *own_directories(checkpoints, self._layout.adapters))
        with storage_errors(_WHAT), new_directory(home / str(number)) as aside:
            pieces = {piece: self._link(draft, piece, aside) for piece in draft.unchanged}
            for piece, tensors in draft.tensors.items():
                pieces[piece] = write_tensors(aside / _file_name(piece), tensors, {})
            record = _record(draft, number, dict(sorted(pieces.items())))
            text = msgspec.json.encode(record)
            sealed = _Sealed(msgspec.Raw(text), hashlib.sha256(text).hexdigest())
            (aside / _DESCRIPTION).write_bytes(msgspec.json.encode(sealed))
        return record

    def known(self, adapter: AdapterId, name: str) -> None:
        """The journal has this one, and none after it; "" for none at all. Of what is there beyond it the newest two
        stay: the journal may be about to take one, and the highest number stays taken."""
        self._kept[adapter] = kept = int(name or 0)
        with _as_far_as_it_goes(adapter):
            beyond = [path for path in self._directories(adapter) if int(path.name) > kept]
            for path in sorted(beyond, key=lambda path: int(path.name))[:-2]:
                self._remove(path)

    def keep(self, adapter: AdapterId, name: str) -> None:
        """The journal has this one now. Of those before it, only the last that it had stays."""
        number, before = int(name) if is_number(name) else 0, self._kept.get(adapter, 0)
        if number <= before:
            return
        self._kept[adapter] = number
        if not before:
            return  # there may be one of an earlier process: the journal knows which
        with _as_far_as_it_goes(adapter):
            for path in self._directories(adapter):
                if int(path.name) < number and int(path.name) != before:
                    self._remove(path)

    def discard(self, record: SnapshotRecord) -> None:
        """Remove one that nobody was told of."""
        self._remove(self._directory(record))

    def sweep(self, adapter: AdapterId) -> None:
        """Remove what a crash left of snapshots that were being written or removed."""
        with _as_far_as_it_goes(adapter):
            if not is_linked(home := self._layout.snapshots(adapter), self._layout.adapters):
                sweep(home)

    def _link(self, draft: Draft, piece: str, aside: Path) -> Written:
        assert draft.before is not None
        link_file(self._file(draft.before, piece), aside / _file_name(piece))
        return draft.before.pieces[piece]

    def _remove(self, path: Path) -> None:
        with _as_far_as_it_goes(path):
            remove_directory(path)

    # --- where they lie --------------------------------------------------------------------------

    def _directories(self, adapter: AdapterId) -> Iterable[Path]:
        home = self._layout.snapshots(adapter)
        if not home.is_dir() or is_linked(home, self._layout.adapters):
            return []
        return [path for path in home.iterdir() if is_number(path.name)]

    def _directory(self, record: SnapshotRecord) -> Path:
        return self._layout.snapshots(record.adapter) / record.name

    def _file(self, record: SnapshotRecord, piece: str) -> Path:
        return self._directory(record) / _file_name(piece)

    def _read(self, directory: Path) -> SnapshotRecord | None:
        """The snapshot that lies in a directory; None for anything foreign, partial or misplaced."""
        try:
            if is_linked(directory, self._layout.adapters):
                return None
            sealed = read_description(directory / _DESCRIPTION, _Sealed)
            if hashlib.sha256(sealed.record).hexdigest() != sealed.sha256:
                return None
            record = decoded(sealed.record, SnapshotRecord)
            if directory != self._directory(record) or not set(record.pieces) <= set(PIECES):
                return None
            sizes = {piece: file_size(self._file(record, piece)) for piece in record.pieces}
        except (OSError, msgspec.DecodeError):
            return None
        return record if sizes == {piece: each.size_bytes for piece, each in record.pieces.items()} else None


def _record(draft: Draft, number: int, pieces: dict[str, Written]) -> SnapshotRecord:
    told = [*((piece, each.digest) for piece, each in pieces.items()), *sorted(draft.metadata.items())]
    return SnapshotRecord(
        adapter=draft.adapter,
        number=number,
        step=draft.step,
        lora=draft.lora,
        base=draft.base,
        window=draft.window,
        metadata=draft.metadata,
        pieces=pieces,
        digest=hashlib.sha256(json.dumps(told).encode()).hexdigest(),
    )


@contextmanager
def _as_far_as_it_goes(where: AdapterId | Path) -> Iterator[None]:
    """What is left costs space and nothing else; the next one that is kept tries again."""
    try:
        yield
    except OSError as error:
        log.warning("snapshot.old_one_stays", where=str(where), reason=str(error))


def _file_name(piece: str) -> str:
    return f"{piece}.safetensors"
