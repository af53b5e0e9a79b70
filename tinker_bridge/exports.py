"""External checkpoints: their files under `<state>/exports/<token>/`, and the addresses they are read at.

An address needs no key: it is signed, for one checkpoint, and for an hour at most. It ends with its
checkpoint. The directory's own name never leaves the server in any other way than signed.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..bus.disk_room import check_free_for_tenant
from ..bus.disk_sync import sync
from ..bus.errors import CheckpointNotFound, DiskQuotaExceeded, ResultExpired, StorageFailed
from ..bus.ids import TenantId
from ..bus.layout import StateLayout
from .age import Recipients
from .records import CheckpointRecord
from .store import Store

_ADDRESS_S = 3600.0
_AGE = ".age"


class Exports:
    """most_bytes: of each tenant; 0 is no bound. clock: seconds since the epoch."""

    def __init__(
        self, store: Store, layout: StateLayout, *, most_bytes: int = 0, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._layout = layout
        self._most_bytes = most_bytes
        self._clock = clock
        # Its own key: what another part of the bridge signs is no address.
        self._key = hmac.digest(store.secret, b"exports", "sha256")
        # Directories that no record speaks of yet.
        self._under_way: set[str] = set()
        # Whose files are being written just now, and their bytes: neither the disk nor a record tells of all of them.
        self._writing: dict[str, tuple[TenantId, int]] = {}
        # What `delete_orphans` found to be spoken of: nothing to read all records for again.
        self._looked_at: set[str] = set()

    def begin(self, made_by: str) -> str:
        """A directory's name, safe from `delete_orphans` until `end`: the same for the same work."""
        token = hmac.new(self._key, f"directory {made_by}".encode(), hashlib.sha256).hexdigest()[:32]
        self._under_way.add(token)
        return token

    def end(self, token: str) -> None:
        self._under_way.discard(token)

    async def write(
        self, tenant: TenantId, token: str, files: Mapping[str, memoryview], to: Recipients | None
    ) -> int:
        """Write files, encrypted if they are to somebody; returns their bytes on disk.

        Raises:
            DiskQuotaExceeded: the tenant's exports would take more than they may.
            StorageFailed: there is no room on the disk, or it refused. Nothing is left of them.
        """
        size_bytes = sum(data.nbytes for data in files.values())
        self._check_quota(tenant, size_bytes)
        promised_bytes = sum(each for _, each in self._writing.values())
        self._writing[token] = (tenant, size_bytes)
        try:
            return await asyncio.to_thread(self._write, token, files, to, promised_bytes)
        finally:
            del self._writing[token]

    def addresses(self, record: CheckpointRecord) -> tuple[dict[str, str], float]:
        """Each file's name with its address below /api/v1/exports/, and when these end, in Unix seconds."""
        ends = self._clock() + _ADDRESS_S
        if record.expires_unix_s is not None:
            ends = min(ends, record.expires_unix_s)
        pass_ = self._signed(msgspec.json.encode([record.id, record.token, ends]))
        names = sorted(file.name for file in _files(self._layout.exports / record.token))
        return {name: f"{pass_}/{name}" for name in names}, ends

    def file_at(self, signed: str, name: str) -> Path:
        """The file at an address.

        Raises:
            CheckpointNotFound: we gave no such address, or its checkpoint is gone.
            ResultExpired: the address ended.
        """
        unknown = CheckpointNotFound("there is nothing at this address: it never was, or was deleted")
        payload = self._checked(signed)
        if payload is None:
            raise unknown
        path, token, ends = msgspec.json.decode(payload, type=tuple[str, str, float])
        if ends <= self._clock():
            raise ResultExpired("this address has expired: ask for the checkpoint's addresses again")
        record = self._store.find(CheckpointRecord, path)
        if record is None or record.token != token:
            raise unknown
        # Compared with what is there, so the name never becomes a path.
        for file in _files(self._layout.exports / token):
            if file.name == name:
                return file
        raise unknown

    def delete_orphans(self) -> None:
        """Delete directories that no record speaks of: left by a crash, or by an expired namesake."""
        found = {directory.name for directory in _files(self._layout.exports)} - self._under_way
        # A record that went took its directory with it, and a new one brought another directory.
        if found <= self._looked_at:
            return
        orphans = found - {record.token for record in self._store.all(CheckpointRecord)}
        for token in orphans:
            shutil.rmtree(self._layout.exports / token, ignore_errors=True)
        self._looked_at = found - orphans

    def _check_quota(self, tenant: TenantId, size_bytes: int) -> None:
        has_bytes = self._store.exported_bytes(tenant)
        has_bytes += sum(each for whose, each in self._writing.values() if whose == tenant)
        if self._most_bytes and has_bytes + size_bytes > self._most_bytes:
            raise DiskQuotaExceeded(
                f"cannot write this export: this tenant's exports take {has_bytes:,} of at most "
                f"{self._most_bytes:,} bytes (quotas.checkpoint_bytes), and this takes {size_bytes:,} more: "
                "delete external weights that are not needed any more, then ask again"
            )

    def _write(
        self, token: str, files: Mapping[str, memoryview], to: Recipients | None, promised_bytes: int
    ) -> int:
        directory = self._layout.exports / token
        # What a bridge that died had begun.
        shutil.rmtree(directory, ignore_errors=True)
        size_bytes = sum(data.nbytes for data in files.values())
        check_free_for_tenant(directory, size_bytes, what="write the export", promised_bytes=promised_bytes)
        try:
            directory.parent.mkdir(mode=0o700, exist_ok=True)
            directory.mkdir(mode=0o700)
            size_bytes = sum(_write_file(directory, name, data, to) for name, data in files.items())
            for each in (directory, directory.parent):
                sync(each)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise StorageFailed(f"cannot write the export: {error.strerror or error}") from error
        return size_bytes

    def _signed(self, payload: bytes) -> str:
        text = base64.urlsafe_b64encode(payload).decode().rstrip("=")
        return f"{text}.{self._signature(text)}"

    def _checked(self, signed: str) -> bytes | None:
        text, _, signature = signed.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            return None
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _write_file(directory: Path, name: str, data: memoryview, to: Recipients | None) -> int:
    """Returns its size. It is on the disk when this returns."""
    with (directory / (name if to is None else name + _AGE)).open("xb") as file:
        if to is None:
            file.write(data)
        else:
            to.encrypt(data, file)
        return _synced(file)


def _synced(file: BinaryIO) -> int:
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _files(directory: Path) -> list[Path]:
    """What lies in a directory; nothing when it is not there."""
    try:
        return [*directory.iterdir()]
    except FileNotFoundError:
        return []
