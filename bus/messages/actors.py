"""What actors and the broker tell each other about themselves."""

from dataclasses import dataclass
from typing import ClassVar

from .base import ActorRole, Message
from .descriptions import VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorReady(Message):
    """An actor has loaded everything and takes requests. A trainer brings what its disk holds."""

    kind: ClassVar[str] = "actor_ready"
    actor: str
    role: ActorRole
    pid: int
    details: str
    versions: tuple[VersionRecord, ...] = ()
    adapters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """Sent every second from a thread of its own.

    busy_s: for how long the actor has not got on with what it is at; 0.0 while it waits for work. at: what
    that is, in words; "" where nobody said.
    """

    kind: ClassVar[str] = "heartbeat"
    actor: str
    busy_s: float
    at: str
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Message):
    """Broker to an actor: finish what is in hand, answer what waits, then exit."""

    kind: ClassVar[str] = "drain"
