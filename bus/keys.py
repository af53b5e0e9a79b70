"""API keys: who may use the service over HTTP, and as which tenant.

Owns `<state>/keys.json` and `<state>/local.key`. A key is shown once, when it is made; the file holds
its SHA-256 only. A fast hash is right here, unlike for passwords: a key is 256 random bits, so there is
nothing to guess that a slow hash would make dearer, and every request is checked. For the same reason
the plain look-up of a hash leaks nothing by its timing: whoever does not know a key cannot choose what
its hash begins with, bit by bit.

A key's name is its tenant. Names can be used again: whoever gets the new key sees the tenant's adapters.
"""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .errors import InvalidName, InvalidRequest, StorageFailed
from .ids import LOCAL_TENANT, TenantId, checked_name
from .layout import StateLayout

_BEGINNING = "tml-"  # the Tinker SDK takes no other
_RANDOM_BYTES = 32
_SHOWN_CHARACTERS = len(_BEGINNING) + 6
_LENGTH = len(_BEGINNING) + len(secrets.token_urlsafe(_RANDOM_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as the file has it. sha256: hexadecimal, of the whole key; prefix: its first characters,
    so that people tell keys apart."""

    name: str
    sha256: str
    prefix: str
    created_unix_s: float

    @property
    def tenant(self) -> TenantId:
        return TenantId(self.name)

    @property
    def key_id(self) -> str:
        """Names the key in public; says as little about it as its hash does."""
        return self.sha256[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    keys: tuple[KeyRecord, ...] = ()


# What tells one state of the file from the next: every change is a new file in its place.
_Stamp = tuple[int, int, int] | None


class Keys:
    """The keys of one state directory; sees what other processes change."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        self._stamp: _Stamp = None
        self._by_hash: dict[str, KeyRecord] = {}

    def tenant_of(self, key: str) -> TenantId | None:
        """Whose key this is; None for one that is not known, or was revoked.

        Costs one stat and one hash; the file is read again when it was changed.

        Raises:
            StorageFailed: the file cannot be read.
        """
        record = self.describe(key)
        return None if record is None else record.tenant

    def describe(self, key: str) -> KeyRecord | None:
        """As `tenant_of`, with all that is known of the key."""
        self._refresh()
        return self._by_hash.get(_hash(key))

    def listed(self) -> list[KeyRecord]:
        """All keys by name. Raises StorageFailed."""
        self._refresh()
        return sorted(self._by_hash.values(), key=lambda record: record.name)

    def create(self, name: str) -> str:
        """Make a key and return it: nobody can read it again later.

        Raises:
            InvalidName: a tenant cannot have that name, or it is the local user's.
            InvalidRequest: there is a key of that name.
            StorageFailed: the file cannot be read or written.
        """
        if checked_name(name, what="a key") == LOCAL_TENANT:
            raise InvalidName(
                f"{name!r} is the local user's own key, which `loractl env` prints: choose another name"
            )
        with _changing(self._layout):
            records = _read(self._layout)[0]
            if any(record.name == name for record in records):
                raise InvalidRequest(
                    f"there is a key named {name!r}: `loractl keys revoke {name}` first, or choose another name"
                )
            key, record = _new_key(name)
            _write(self._layout, (*records, record))
        return key

    def revoke(self, name: str) -> None:
        """Forget a key; what its tenant made stays. The local user's is made anew when it is needed next.

        Raises:
            InvalidRequest: there is no key of that name.
            StorageFailed: the file cannot be read or written.
        """
        with _changing(self._layout):
            records = _read(self._layout)[0]
            left = tuple(record for record in records if record.name != name)
            if len(left) == len(records):
                raise InvalidRequest(f"there is no key named {name[:80]!r}: `loractl keys list` shows all")
            _write(self._layout, left)
            if name == LOCAL_TENANT:
                self._layout.local_key.unlink(missing_ok=True)

    def _refresh(self) -> None:
        try:
            stamp = _stamp(self._layout.keys.stat())
        except OSError:
            stamp = None  # absent, or unreadable: reading says which
        if stamp is None or stamp != self._stamp:
            records, self._stamp = _read(self._layout)
            self._by_hash = {record.sha256: record for record in records}


def ensure_local_key(layout: StateLayout) -> str:
    """The local user's own key, made when there is none; its text lies in a file for that user alone.

    Deleting the file ends the key: the next one takes its place.

    Raises:
        StorageFailed: the state directory cannot be read or written.
    """
    with _changing(layout):
        records = _read(layout)[0]
        key = _read_local(layout)
        if key is not None and any(r.sha256 == _hash(key) and r.name == LOCAL_TENANT for r in records):
            return key
        key, record = _new_key(LOCAL_TENANT)
        # First the text: a crash in between leaves a key that is not known, which the next call replaces.
        _replace(layout.local_key, f"{key}\n".encode())
        _write(layout, (*(each for each in records if each.name != LOCAL_TENANT), record))
    return key


def _new_key(name: str) -> tuple[str, KeyRecord]:
    key = _BEGINNING + secrets.token_urlsafe(_RANDOM_BYTES)
    return key, KeyRecord(
        name=name, sha256=_hash(key), prefix=key[:_SHOWN_CHARACTERS], created_unix_s=time.time()
    )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _changing(layout: StateLayout) -> Iterator[None]:
    """One change at a time, whichever process makes it: the lock is the state directory's own."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        directory = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise _unusable(layout.root, error) from error


def _read(layout: StateLayout) -> tuple[tuple[KeyRecord, ...], _Stamp]:
    """What the file holds, and which state of it that was. No file is no keys."""
    try:
        with layout.keys.open("rb") as file:
            stamp, data = _stamp(os.fstat(file.fileno())), file.read()
    except FileNotFoundError:
        return (), None
    except OSError as error:
        raise _unusable(layout.keys, error) from error
    try:
        return msgspec.json.decode(data, type=_File).keys, stamp
    except msgspec.DecodeError as error:
        raise StorageFailed(
            f"{layout.keys} holds no API keys that loractl wrote ({error}): mend it, or remove it and make new keys"
        ) from error


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read_local(layout: StateLayout) -> str | None:
    try:
        key = layout.local_key.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return key if len(key) == _LENGTH and key.startswith(_BEGINNING) else None


def _write(layout: StateLayout, records: tuple[KeyRecord, ...]) -> None:
    _replace(layout.keys, msgspec.json.format(msgspec.json.encode(_File(keys=records)), indent=2) + b"\n")


def _replace(file: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also after a crash; only its owner may read it."""
    aside = file.with_name(f".{file.name}.new")  # one writer at a time: the lock is held
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
        written.write(data)
        written.flush()
        os.fsync(written.fileno())
    aside.replace(file)


def _unusable(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(f"{path} cannot be used for API keys: {(error.strerror or str(error)).lower()}")
