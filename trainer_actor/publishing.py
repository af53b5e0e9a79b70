"""Published versions on disk: `<state>/versions/<adapter>/<number>/`, immutable, whole or absent.

Owns writing, finding again after a restart, and deleting. A version holds the two PEFT files and
`version.json`, the `VersionRecord` that samplers need. What the PEFT files contain is the engine's;
when a version goes is decided by the broker.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import structlog

from ..bus.disk_room import check_free_for_tenant
from ..bus.errors import CheckpointMismatch, NotFinite, VersionNotFound
from ..bus.ids import AdapterId, RequestId
from ..bus.layout import StateLayout
from ..bus.messages import VersionRecord
from .disk_quota import DiskQuota
from .durable_files import (
    file_digest,
    file_size,
    is_linked,
    new_directory,
    own_directories,
    read_description,
    refuse_links,
    remove_directory,
    storage_errors,
    sweep,
)

log = structlog.get_logger()

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_DESCRIPTION = "version.json"
_PROBE_SEED = 20240213
# More than the coarsest dates of file systems differ by.
_DATED_BACK_S = 60.0
_OUR_DIRECTORY = re.compile(r"ad-[0-9a-f]{32}")


class Versions:
    """The whole versions that the disk holds, newest known per adapter. quota: learns what they take."""

    def __init__(self, layout: StateLayout, quota: DiskQuota | None = None) -> None:
        self._layout = layout
        self._quota = quota or DiskQuota()
        self._records: dict[AdapterId, dict[int, VersionRecord]] = {}

    def all(self) -> tuple[VersionRecord, ...]:
        return tuple(record for numbers in self._records.values() for record in numbers.values())

    def newest(self, adapter: AdapterId) -> int:
        """Number of the newest version, 0 when there is none."""
        return max(self._records.get(adapter, ()), default=0)

    def write(self, record: VersionRecord, config_json: str, safetensors: bytes) -> VersionRecord:
        """Write a version; the record returned has its directory and digest filled in. It is known once
        it is added. Touches nothing but files.

        Raises:
            StorageFailed: no space, or the disk refused. Nothing is there then.
            NotFinite: the probe shows that the weights are not finite.
        """
        if not np.all(np.isfinite(record.probe_logprobs)):
            raise NotFinite("the adapter's logprobs are not finite, so nobody could sample from it")
        what = f"publish version {record.number}"
        directory = self._layout.version(record.adapter, record.number)
        refuse_links(directory, self._layout.versions, what=what)
        check_free_for_tenant(directory, len(safetensors), what=what)
        digest = hashlib.sha256(safetensors).hexdigest()
        whole = replace(record, directory=str(directory), digest=digest)
        with storage_errors(what), new_directory(directory) as aside:
            (aside / PEFT_CONFIG).write_text(config_json, encoding="utf-8")
            (aside / PEFT_WEIGHTS).write_bytes(safetensors)
            (aside / _DESCRIPTION).write_bytes(msgspec.json.encode(whole))
            _date_back(aside)
        return whole

    def add(self, record: VersionRecord, size_bytes: int) -> None:
        """What `write` wrote is a version from now on. size_bytes: of its files."""
        self._records.setdefault(record.adapter, {})[record.number] = record
        self._quota.takes(record.tenant, (record.adapter, record.number), size_bytes)

    def replaced_bytes(self, adapter: AdapterId, *, keep: int) -> int:
        """What goes when one more is published that nobody holds: the oldest of those, where there are `keep`."""
        passing = sorted(n for n, each in self._records.get(adapter, {}).items() if not each.held)
        return self._quota.size((adapter, passing[0])) if len(passing) >= keep else 0

    def find(self, adapter: AdapterId, number: int) -> VersionRecord:
        """Raises VersionNotFound."""
        record = self._records.get(adapter, {}).get(number)
        if record is None:
            raise VersionNotFound(f"version {number} of this adapter does not exist or was retired")
        return record

    def of_request(self, adapter: AdapterId, request: RequestId) -> VersionRecord | None:
        """The version that a publish wrote, by the publish's id."""
        written = self._records.get(adapter, {}).values()
        return next((record for record in written if record.request == request), None)

    def files(self, record: VersionRecord) -> tuple[str, bytes]:
        """What `write` was given: adapter_config.json and adapter_model.safetensors.

        Raises:
            CheckpointMismatch: the files are not those that were written.
        """
        number = record.number
        directory = self._layout.version(record.adapter, number)
        try:
            config_json = (directory / PEFT_CONFIG).read_text(encoding="utf-8")
            safetensors = (directory / PEFT_WEIGHTS).read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            # Where the files lie is no business of tenants.
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise CheckpointMismatch(f"version {number} cannot be read: {reason}; load another") from error
        if hashlib.sha256(safetensors).hexdigest() != record.digest:
            raise CheckpointMismatch(
                f"version {number} is damaged: its file is not the one that was published; load another"
            )
        return config_json, safetensors

    def drop(self, adapter: AdapterId, number: int) -> None:
        """Delete a version that no sampler holds. Deleting it again is fine."""
        what, directory = f"delete version {number}", self._layout.version(adapter, number)
        refuse_links(directory, self._layout.versions, what=what)
        with storage_errors(what):
            remove_directory(directory)
        self._quota.gone((adapter, number))
        numbers = self._records.get(adapter, {})
        numbers.pop(number, None)
        if not numbers:
            self._records.pop(adapter, None)
            self._remove_if_empty(self._layout.versions / adapter)

    def scan(self, known: Collection[AdapterId], existing: Collection[AdapterId]) -> None:
        """Find what the disk holds. Weights are read only where somebody else wrote to them: to read all of them
        takes longer than a start may, and whoever uses them compares their digest.

        known: adapters whose versions are served. existing: all adapters on disk, whatever their
        base model; versions of any other were left by a deletion, and are removed.
        """
        for old in self.all():
            self._quota.gone((old.adapter, old.number))
        self._records = {}
        home = self._layout.versions
        for directory in sorted(own_directories(home, home)):
            adapter = AdapterId(directory.name)
            if adapter in known:
                sweep(directory)
                for record, size_bytes in sorted(self._whole(directory), key=lambda each: each[0].number):
                    self.add(record, size_bytes)
            elif adapter not in existing and _OUR_DIRECTORY.fullmatch(directory.name):
                log.info("version.orphans_removed", adapter=adapter)
                shutil.rmtree(directory, ignore_errors=True)

    def _whole(self, directory: Path) -> Iterator[tuple[VersionRecord, int]]:
        """With the bytes of their files."""
        for path in directory.iterdir():
            found = self._read(path)
            if found is not None:
                yield found
            else:
                log.warning("version.broken_or_foreign_ignored", path=str(path))

    def _read(self, directory: Path) -> tuple[VersionRecord, int] | None:
        try:
            if is_linked(directory, self._layout.versions):
                return None
            record = read_description(directory / _DESCRIPTION, VersionRecord)
            size_bytes = file_size(directory / PEFT_CONFIG) + file_size(directory / PEFT_WEIGHTS)
            whole = _untouched(directory) or file_digest(directory / PEFT_WEIGHTS) == record.digest
        except (OSError, msgspec.DecodeError):
            return None
        placed = self._layout.version(record.adapter, record.number) == directory
        # The state directory may have been moved since; where the files lie now is what counts.
        return (replace(record, directory=str(directory)), size_bytes) if placed and whole else None

    def _remove_if_empty(self, directory: Path) -> None:
        try:
            directory.rmdir()
        except OSError:
            # Something foreign lies in it, or it never existed: neither is ours to remove.
            return


def _date_back(directory: Path) -> None:
    """Make the weights' date older than their description's, so that `_untouched` knows them by it."""
    written = (directory / _DESCRIPTION).stat().st_mtime - _DATED_BACK_S
    os.utime(directory / PEFT_WEIGHTS, (written, written))


def _untouched(directory: Path) -> bool:
    """Whether nobody wrote to the weights since they were described: that would have given them a new date.

    Raises OSError: one of them is not there.
    """
    return (directory / PEFT_WEIGHTS).stat().st_mtime < (directory / _DESCRIPTION).stat().st_mtime


def probe_sequence(*, vocab_size: int, count: int) -> tuple[int, ...]:
    """Token ids on which trainer and sampler compare logprobs: the same for every version.

    PCG64 draws them, whose stream numpy keeps across its releases.
    """
    stream = np.random.Generator(np.random.PCG64(_PROBE_SEED))
    return tuple(int(token) for token in stream.integers(0, vocab_size, count))
