"""What the pure core decides, as data. The loop performs them in order and decides nothing.

A client is known by the identity its socket has; an actor by its name. Frames that only pass
through stay as they came; messages of the broker's own are encoded by the loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

from ..bus.codec import Buffer
from ..bus.ids import ActorId, RequestId, TenantId
from ..bus.messages import AdapterDeleted, AdapterPublished, Envelope, VersionRetired

if TYPE_CHECKING:
    from .journal.records import Record

ClientId = NewType("ClientId", bytes)
Key = tuple[TenantId, RequestId]
Frames = Sequence[Buffer]
Event = AdapterPublished | VersionRetired | AdapterDeleted


@dataclass(frozen=True, slots=True)
class Forward:
    """To an actor: a client's request."""

    actor: ActorId
    frames: Frames


@dataclass(frozen=True, slots=True)
class Relay:
    """To a client: an actor's answer."""

    client: ClientId
    frames: Frames


@dataclass(frozen=True, slots=True)
class Tell:
    """To an actor: the broker's own words."""

    actor: ActorId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Reply:
    """To a client: the broker's own words."""

    client: ClientId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Publish:
    """To every subscriber."""

    event: Event


@dataclass(frozen=True, slots=True)
class Heard:
    """To the supervisor: an actor gave a sign of life, or is ready. busy_s, at: see `Heartbeat`."""

    actor: ActorId
    ready: bool = False
    busy_s: float = 0.0
    at: str = ""


@dataclass(frozen=True, slots=True)
class StopDaemon:
    """A client asked for it: end as on SIGTERM."""


@dataclass(frozen=True, slots=True)
class WriteDown:
    """To the journal. What depends on it is decided once it is durable."""

    record: "Record"


@dataclass(frozen=True, slots=True)
class Say:
    """To the daemon's log."""

    event: str
    fields: Mapping[str, object]


Decision = Forward | Relay | Tell | Reply | Publish | Heard | StopDaemon | WriteDown | Say
