"""What the bridge writes down about futures and changes. Plain data; `future_table` has the SQLite."""

from dataclasses import dataclass

from ..bus.ids import TenantId
from .future_ids import Key
from .results import Result


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came, with which its work can be started again.

    route: what starts it, see `run_again`. key: of its future where the request itself does not say it, such
    as the place of an operation without a number; empty when it came just now.
    """

    tenant: TenantId
    route: str
    body: bytes
    content_type: str = ""
    content_encoding: str | None = None
    key: Key = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A future whose id may be told once this is durable. Written twice, the first one stands."""

    id: str
    tenant: TenantId
    key: Key
    digest: bytes
    session: str
    scope: str
    group: Key
    asked: Asked
    began_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What its work found and must find again when it runs again."""

    id: str
    decided: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How often each of them was in hand after a restart and did not get on its way."""

    ids: tuple[str, ...]
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Its result, to be told once this is durable. number: its place among the ends of all futures."""

    id: str
    number: int
    result: Result
    ended_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Results that their reader has."""

    tenant: TenantId
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """Results of no live session that are older go, and beyond a size some of those who have the most.

    read: those that were read since the last time.
    """

    before_unix_s: float
    live_sessions: tuple[str, ...]
    most_bytes: int
    read: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that is answered at once, under the key that its client gave it. done: or being made."""

    tenant: TenantId
    what: str
    key: str
    done: bool
    unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """A change that failed: the next request tries again."""

    tenant: TenantId
    what: str
    key: str


@dataclass(frozen=True, slots=True)
class Settle:
    """No row: done when what has to be durable before any row is."""


Row = Begun | Decided | Tried | Ended | Dropped | Aged | Change | Unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A future as the table has it, without its request. attempts: see `Tried`. result: None while it has
    none, and when it is expired: let go of, while the rest is kept."""

    id: str
    tenant: TenantId
    key: Key
    digest: bytes
    session: str
    scope: str
    group: Key
    decided: bytes
    attempts: int
    result: Result | None
    expired: bool
    ended_unix_s: float
