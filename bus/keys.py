"""API keys: who may use the service over HTTP, and as which tenant.

Owns `<state>/keys.json` and `<state>/local.key`. A key is shown once, when it is made; the file holds
its SHA-256 only. A fast hash is right here, unlike for passwords: a key is 256 random bits, so there is
nothing to guess that a slow hash would make dearer, and every request is checked. How long a look-up
takes says nothing about any key: what is compared is salted anew in every process (see `_tag`).

A key's name is its tenant. Names can be used again: whoever gets the new key sees the tenant's adapters.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InvalidName, InvalidRequest
from .ids import LOCAL_TENANT, TenantId, checked_name
from .key_files import KeyFile, changing, replace
from .layout import StateLayout

_BEGINNING = "tml-"  # the Tinker SDK takes no other
_RANDOM_BYTES = 32
_SHOWN_CHARACTERS = len(_BEGINNING) + 6
_LENGTH = len(_BEGINNING) + len(secrets.token_urlsafe(_RANDOM_BYTES))
_HOLDS = "API keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as the file has it. sha256: hexadecimal, of the whole key; prefix: its first characters,
    so that people tell keys apart. expires_unix_s: from when on it is nobody's; None: never."""

    name: str
    sha256: str
    prefix: str
    created_unix_s: float
    expires_unix_s: float | None = None

    @property
    def tenant(self) -> TenantId:
        return TenantId(self.name)

    @property
    def key_id(self) -> str:
        """Names the key in public; says as little about it as its hash does."""
        return self.sha256[:16]

    def expired(self, now_unix_s: float) -> bool:
        return self.expires_unix_s is not None and now_unix_s >= self.expires_unix_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    keys: tuple[KeyRecord, ...] = ()


class Keys:
    """The keys of one state directory; sees what other processes change."""

    def __init__(self, layout: StateLayout, *, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._clock = clock
        self._file = _file(layout)
        self._salt = secrets.token_bytes(32)
        self._by_tag: dict[bytes, KeyRecord] = {}

    def tenant_of(self, key: str) -> TenantId | None:
        """Whose key this is; None for one that is not known, was revoked, or has expired.

        Costs one stat and two hashes; the file is read again when it was changed.

        Raises:
            StorageFailed: the file cannot be read.
        """
        record = self.describe(key)
        return None if record is None else record.tenant

    def describe(self, key: str) -> KeyRecord | None:
        """As `tenant_of`, with all that is known of the key."""
        self._refresh()
        digest = _hash(key)
        record = self._by_tag.get(self._tag(digest))
        if record is None or not hmac.compare_digest(record.sha256, digest):
            return None
        return None if record.expired(self._clock()) else record

    def listed(self) -> list[KeyRecord]:
        """All keys by name, expired ones among them. Raises StorageFailed."""
        self._refresh()
        return sorted(self._by_tag.values(), key=lambda record: record.name)

    def create(self, name: str, *, expires_unix_s: float | None = None) -> str:
        """Make a key and return it: nobody can read it again later. It takes an expired one's place.

        Raises:
            InvalidName: a tenant cannot have that name, or it is the local user's.
            InvalidRequest: there is a key of that name.
            StorageFailed: the file cannot be read or written.
        """
        check_tenant(name)
        with changing(self._layout, holds=_HOLDS):
            now = self._clock()
            records = tuple(
                each for each in _read(self._layout) if each.name != name or not each.expired(now)
            )
            if any(record.name == name for record in records):
                raise InvalidRequest(
                    f"there is a key named {name!r}: `loractl keys revoke {name}` first, or choose another name"
                )
            key, record = _new_key(name, now, expires_unix_s)
            _file(self._layout).write(_Content(keys=(*records, record)))
        return key

    def revoke(self, name: str) -> None:
        """Forget a key; what its tenant made stays. The local user's is made anew when it is needed next.

        Raises:
            InvalidRequest: there is no key of that name.
            StorageFailed: the file cannot be read or written.
        """
        with changing(self._layout, holds=_HOLDS):
            records = _read(self._layout)
            left = tuple(record for record in records if record.name != name)
            if len(left) == len(records):
                raise InvalidRequest(f"there is no key named {name[:80]!r}: `loractl keys list` shows all")
            _file(self._layout).write(_Content(keys=left))
            if name == LOCAL_TENANT:
                self._layout.local_key.unlink(missing_ok=True)

    def _refresh(self) -> None:
        content, changed = self._file.content()
        if changed:
            self._by_tag = {self._tag(record.sha256): record for record in content.keys}

    def _tag(self, sha256: str) -> bytes:
        """What keys are looked up by. Nobody outside can choose, bit by bit, what this begins with, so
        the time that a comparison takes leads nobody nearer to a key."""
        return hmac.digest(self._salt, sha256.encode(), "sha256")


def ensure_local_key(layout: StateLayout) -> str:
    """The local user's own key, made when there is none; its text lies in a file for that user alone.

    Deleting the file ends the key: the next one takes its place.

    Raises:
        StorageFailed: the state directory cannot be read or written.
    """
    with changing(layout, holds=_HOLDS):
        records = _read(layout)
        key = _read_local(layout)
        if key is not None and any(r.sha256 == _hash(key) and r.name == LOCAL_TENANT for r in records):
            return key
        key, record = _new_key(LOCAL_TENANT, time.time(), None)
        # First the text: a crash in between leaves a key that is not known, which the next call replaces.
        replace(layout.local_key, f"{key}\n".encode())
        others = (each for each in records if each.name != LOCAL_TENANT)
        _file(layout).write(_Content(keys=(*others, record)))
    return key


def check_tenant(name: str) -> None:
    """Raises InvalidName: no key can be made for a tenant of this name."""
    if checked_name(name, what="a key") == LOCAL_TENANT:
        raise InvalidName(
            f"{name!r} is the local user's own key, which `loractl env` prints: choose another name"
        )


def _new_key(name: str, now_unix_s: float, expires_unix_s: float | None) -> tuple[str, KeyRecord]:
    key = _BEGINNING + secrets.token_urlsafe(_RANDOM_BYTES)
    return key, KeyRecord(
        name=name,
        sha256=_hash(key),
        prefix=key[:_SHOWN_CHARACTERS],
        created_unix_s=now_unix_s,
        expires_unix_s=expires_unix_s,
    )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _file(layout: StateLayout) -> KeyFile[_Content]:
    return KeyFile(layout.keys, _Content, _Content(), holds=_HOLDS)


def _read(layout: StateLayout) -> tuple[KeyRecord, ...]:
    return _file(layout).read()[0].keys


def _read_local(layout: StateLayout) -> str | None:
    try:
        key = layout.local_key.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return key if len(key) == _LENGTH and key.startswith(_BEGINNING) else None
