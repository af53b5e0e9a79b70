"""CURVE keys: who may reach the bus over tcp, and as which tenant.

Owns `<state>/curve.key` (0600: the server's pair) and `<state>/curve.json` (whose public keys may connect).
A client's secret key is handed out once, in a file of its own, and is not kept here. CURVE is zmq's
Curve25519 handshake: both sides prove their keys, and all that follows is encrypted.

Public keys are no secrets, so they are compared like any other text. Keys are 40 characters of Z85.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .curve_sockets import new_curve_pair
from .errors import InvalidConfig
from .ids import TenantId
from .key_files import KeyFile, changing
from .keys import check_tenant
from .layout import StateLayout

_HOLDS = "CURVE keys"
_LENGTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPair:
    """The daemon's own keys; empty where none were made."""

    public: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """What one client needs, as its file holds it. server: the daemon's public key."""

    tenant: str
    server: str
    public: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRecord:
    """A client that may connect. expires_unix_s: until when; None: for ever."""

    name: str
    public: str
    created_unix_s: float
    expires_unix_s: float | None = None

    def expired(self, now_unix_s: float) -> bool:
        return self.expires_unix_s is not None and now_unix_s >= self.expires_unix_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    clients: tuple[CurveRecord, ...] = ()


class CurveKeys:
    """The CURVE keys of one state directory; sees what other processes change."""

    def __init__(self, layout: StateLayout, *, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._clock = clock
        self._file = _clients(layout)
        self._by_public: dict[str, CurveRecord] = {}

    def tenant_of(self, public: str) -> TenantId | None:
        """Whose public key this is; None for one that is not known, was revoked, or has expired.

        Costs one stat; the file is read again when it was changed.

        Raises:
            StorageFailed: the file cannot be read.
        """
        content, changed = self._file.content()
        if changed:
            self._by_public = {record.public: record for record in content.clients}
        record = self._by_public.get(public)
        if record is None or record.expired(self._clock()):
            return None
        return TenantId(record.name)

    def listed(self) -> list[CurveRecord]:
        """By name, then by age, expired ones among them. Raises StorageFailed."""
        clients = self._file.read()[0].clients
        return sorted(clients, key=lambda record: (record.name, record.created_unix_s))

    def server(self) -> ServerPair:
        """The daemon's own keys; empty where none were made. Raises StorageFailed."""
        return _server(self._layout).read()[0]

    def ensure_server(self) -> ServerPair:
        """The daemon's own keys, made when there are none. Raises StorageFailed."""
        with changing(self._layout, holds=_HOLDS):
            return self._ensure_server()

    def create(self, tenant: str, *, expires_unix_s: float | None = None) -> ClientKey:
        """Make a key with which one may connect as this tenant. A tenant may have several, one a machine.

        Raises:
            InvalidName: a tenant cannot have that name, or it is the local user's.
            StorageFailed: the files cannot be read or written.
        """
        check_tenant(tenant)
        public, secret = new_curve_pair()
        record = CurveRecord(
            name=tenant, public=public, created_unix_s=self._clock(), expires_unix_s=expires_unix_s
        )
        with changing(self._layout, holds=_HOLDS):
            server = self._ensure_server()
            clients = self._file.read()[0].clients
            self._file.write(_Content(clients=(*clients, record)))
        return ClientKey(tenant=tenant, server=server.public, public=public, secret=secret)

    def revoke(self, name: str) -> int:
        """Forget all keys of a tenant, at once also for connections that stand; returns how many there were.

        Raises:
            StorageFailed: the file cannot be read or written.
        """
        with changing(self._layout, holds=_HOLDS):
            clients = self._file.read()[0].clients
            left = tuple(record for record in clients if record.name != name)
            if len(left) < len(clients):
                self._file.write(_Content(clients=left))
        return len(clients) - len(left)

    def _ensure_server(self) -> ServerPair:
        file = _server(self._layout)
        found = file.read()[0]
        if not found.public:
            public, secret = new_curve_pair()
            found = ServerPair(public=public, secret=secret)
            file.write(found)
        return found


def read_client_key(file: Path) -> ClientKey:
    """A client's key file, as `loractl keys curve` wrote it.

    Raises:
        InvalidConfig: it cannot be read, is no such file, or others may read it.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise InvalidConfig(f"{file} may be read by others: chmod 600 it, for it holds a secret key")
        key = msgspec.json.decode(file.read_bytes(), type=ClientKey)
    except OSError as error:
        raise InvalidConfig(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{file} is no key file as `loractl keys curve` makes them") from error
    if any(len(each) != _LENGTH or not each.isascii() for each in (key.server, key.public, key.secret)):
        raise InvalidConfig(f"{file} holds keys that are not {_LENGTH} characters long")
    return key


def checked_server(layout: StateLayout, listen: str) -> ServerPair:
    """The keys of a daemon that is to listen at a tcp address.

    Raises:
        InvalidConfig: there are none, and nothing is served over tcp without.
        StorageFailed: they cannot be read.
    """
    pair = CurveKeys(layout).server()
    if not pair.public:
        raise InvalidConfig(
            f"daemon.listen is {listen}, and tcp needs CURVE keys: `loractl keys curve` makes them"
        )
    return pair


def _clients(layout: StateLayout) -> KeyFile[_Content]:
    return KeyFile(layout.curve_clients, _Content, _Content(), holds=_HOLDS)


def _server(layout: StateLayout) -> KeyFile[ServerPair]:
    return KeyFile(layout.curve_key, ServerPair, ServerPair(), holds=_HOLDS)
