"""Checkpoints on disk: an adapter's whole training state under a name.

`<state>/adapters/<id>/checkpoints/<digest of name>/<sequence>/` holds `state.safetensors` and
`checkpoint.json`. Sequences grow over all checkpoints and snapshots of an adapter, so the newest is known
after a restart without trusting a clock. Overwriting writes the next sequence beside the old one and then
removes the old: at every moment one whole checkpoint of that name exists. Whatever does not have
this shape (`step_latest`, half a directory, a stray file) is no checkpoint and is left alone.

What the tensors mean is the engine's business.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
import torch
from safetensors import SafetensorError

from ..bus.disk_room import check_free_for_tenant
from ..bus.errors import CheckpointExists, CheckpointMismatch, CheckpointNotFound, StorageFailed
from ..bus.ids import AdapterId, checked_name
from ..bus.layout import StateLayout
from ..bus.messages import LoraSpec
from .checkpoint_state import check_geometry
from .disk_quota import UNBOUND, Room
from .durable_files import (
    file_digest,
    file_size,
    is_linked,
    new_directory,
    next_number,
    own_directories,
    read_description,
    refuse_links,
    remove_directory,
    storage_errors,
    sweep,
)
from .state_files import read_tensors, write_tensors

log = structlog.get_logger()

_TENSORS = "state.safetensors"
_DESCRIPTION = "checkpoint.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """One whole checkpoint. digest: SHA-256 of the tensors' file, hex. base: see `registry`. request: of the
    save that made it, which replaces it when it runs again; "" for the trainer's own."""

    adapter: AdapterId
    name: str
    sequence: int
    step: int
    lora: LoraSpec
    base: str
    digest: str
    size_bytes: int
    request: str = ""


class Checkpoints:
    """Those of every adapter, as the disk holds them. Remembers nothing of them.

    keep: so many of an adapter's stay when one more is saved; 0 is no bound.
    """

    def __init__(self, layout: StateLayout, *, keep: int = 0) -> None:
        self._layout = layout
        self._keep = keep

    def all(self, adapter: AdapterId) -> list[CheckpointRecord]:
        """Oldest first. A name that was being overwritten may be there twice for a moment.

        Raises StorageFailed, as does everything that looks for one.
        """
        with storage_errors("look for checkpoints"):
            homes, ours = self._homes(adapter), self._layout.adapters
            found = [self._read(path) for home in homes for path in own_directories(home, ours)]
        return sorted((each for each in found if each is not None), key=lambda each: each.sequence)

    def newest(self, adapter: AdapterId) -> CheckpointRecord | None:
        return next(reversed(self.all(adapter)), None)

    def find(self, adapter: AdapterId, name: str) -> CheckpointRecord:
        """Raises CheckpointNotFound, InvalidName."""
        checked_name(name, what="a checkpoint")
        record = self.named(adapter, name)
        if record is None:
            raise CheckpointNotFound(f"the adapter has no checkpoint named {name!r}")
        return record

    def named(self, adapter: AdapterId, name: str) -> CheckpointRecord | None:
        """The newest of this name, if there is one."""
        return next((each for each in reversed(self.all(adapter)) if each.name == name), None)

    def size_bytes(self, adapter: AdapterId) -> int:
        """Of all of them."""
        return sum(each.size_bytes for each in self.all(adapter))

    def check_new(self, adapter: AdapterId, name: str, *, overwrite: bool) -> None:
        """Raises CheckpointExists, InvalidName: before the state is copied anywhere."""
        checked_name(name, what="a checkpoint")
        if not overwrite and self.named(adapter, name) is not None:
            raise CheckpointExists(
                f"a checkpoint {name!r} exists already; choose another name or overwrite it"
            )

    def save(
        self,
        adapter: AdapterId,
        name: str,
        tensors: Tensors,
        metadata: Mapping[str, str],
        *,
        step: int,
        lora: LoraSpec,
        base: str,
        request: str = "",
        room: Room = UNBOUND,
    ) -> CheckpointRecord:
        """Write a checkpoint and, once it is whole, remove older ones of the same name, and beyond `keep`.

        request: of the save. room: of its tenant, without what this one replaces.

        Raises:
            StorageFailed: no space, or the disk refused. Checkpoints are as they were.
            DiskQuotaExceeded: the tenant has too much on disk. So they are then.
        """
        what = f"save checkpoint {name!r}"
        directory = self._layout.checkpoint(adapter, name)
        refuse_links(directory, self._layout.adapters, what=what)
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        room.check(what, size_bytes)
        check_free_for_tenant(directory, size_bytes, what=what)
        with storage_errors(what):
            sequence = self._next_sequence(adapter)
        with storage_errors(what), new_directory(directory / str(sequence)) as aside:
            file = aside / _TENSORS
            written = write_tensors(file, tensors, metadata)
            record = CheckpointRecord(
                adapter=adapter,
                name=name,
                sequence=sequence,
                step=step,
                lora=lora,
                base=base,
                digest=written.digest,
                size_bytes=written.size_bytes,
                request=request,
            )
            (aside / _DESCRIPTION).write_bytes(msgspec.json.encode(record))
        self._remove_older(directory, sequence)
        self._remove_beyond_keep(adapter)
        return record

    def load(self, record: CheckpointRecord) -> tuple[Tensors, dict[str, str]]:
        """Read the tensors (on the CPU) and their metadata.

        Raises:
            CheckpointMismatch: the file is not the one that was written, or not there any more: whoever owns
                a checkpoint may delete it while others read it.
        """
        file = self._directory(record) / _TENSORS
        try:
            if file_digest(file) == record.digest:
                return read_tensors(file)
            reason = "its file is not the one that was saved"
        except (OSError, SafetensorError, RuntimeError) as error:  # the last from torch, as it opens the file
            log.warning("checkpoint.not_read", adapter=record.adapter, name=record.name, reason=str(error))
            reason = "its file cannot be read"
        raise CheckpointMismatch(
            f"checkpoint {record.name!r} of step {record.step} is damaged: {reason}; load another"
        )

    def delete(self, adapter: AdapterId, name: str) -> None:
        """Delete a checkpoint. Of those of its name the newest goes last: until then it stands for all.

        Raises:
            CheckpointNotFound, InvalidName
            StorageFailed: the disk refused; the checkpoint is as it was.
        """
        self.find(adapter, name)
        with storage_errors(f"delete checkpoint {name!r}"):
            for record in self.all(adapter):
                if record.name == name:
                    remove_directory(self._directory(record))

    def remove(self, record: CheckpointRecord) -> None:
        """Delete this one, whatever others of its name there are. Raises StorageFailed."""
        with storage_errors(f"delete checkpoint {record.name!r}"):
            remove_directory(self._directory(record))

    def sweep(self, adapter: AdapterId) -> None:
        """Remove what a crash left of checkpoints that were being written or removed."""
        with _as_far_as_it_goes(adapter):
            for directory in self._homes(adapter):
                sweep(directory)
            newest = {record.name: record for record in self.all(adapter)}
            for record in newest.values():
                self._remove_older(self._layout.checkpoint(adapter, record.name), record.sequence)

    def _next_sequence(self, adapter: AdapterId) -> int:
        """Above every number in use, those of damaged checkpoints included: they still take the place."""
        return next_number(self._layout.snapshots(adapter), *self._homes(adapter))

    def _homes(self, adapter: AdapterId) -> list[Path]:
        """The directories of names."""
        return own_directories(self._layout.adapter(adapter) / "checkpoints", self._layout.adapters)

    def _directory(self, record: CheckpointRecord) -> Path:
        return self._layout.checkpoint(record.adapter, record.name) / str(record.sequence)

    def _read(self, directory: Path) -> CheckpointRecord | None:
        """The checkpoint that lies in a directory; None for anything foreign, partial or misplaced."""
        try:
            if is_linked(directory, self._layout.adapters):
                return None
            record = read_description(directory / _DESCRIPTION, CheckpointRecord)
            size_bytes = file_size(directory / _TENSORS)
        except (OSError, msgspec.DecodeError):
            return None
        whole = directory == self._directory(record) and size_bytes == record.size_bytes
        return record if whole else None

    def _remove_older(self, directory: Path, newest: int) -> None:
        with _as_far_as_it_goes(directory):
            for path in directory.iterdir():
                record = self._read(path)
                if record is not None and record.sequence < newest:
                    self._try_to_remove(path)

    def _remove_beyond_keep(self, adapter: AdapterId) -> None:
        with _as_far_as_it_goes(adapter):
            for old in self.all(adapter)[: -self._keep] if self._keep else ():
                log.info("checkpoint.too_many", adapter=adapter, name=old.name, step=old.step)
                self._try_to_remove(self._directory(old))

    def _try_to_remove(self, path: Path) -> None:
        with _as_far_as_it_goes(path):
            remove_directory(path)


@contextmanager
def _as_far_as_it_goes(where: AdapterId | Path) -> Iterator[None]:
    """The newest one wins anyway; the next start, or the next save, tries again."""
    try:
        yield
    except (OSError, StorageFailed) as error:
        log.warning("checkpoint.old_one_stays", where=str(where), reason=str(error))


def check_fits(record: CheckpointRecord, lora: LoraSpec, base: str) -> None:
    """Refuse a checkpoint of other geometry, with every difference. The seed may differ.

    Raises:
        CheckpointMismatch
    """
    check_geometry(f"checkpoint {record.name!r}", (record.lora, record.base), (lora, base))
