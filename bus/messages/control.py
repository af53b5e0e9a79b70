"""Requests that the broker answers itself, and answers that any request may get."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ids import RequestId
from .base import ActorPhase, ActorRole, Bytes, Message

# others: requests of others come first, or nobody can serve it yet. own: operations of its adapter come
# first. quota: its tenant has as much as it may have at a time.
WaitCause = Literal["others", "own", "quota"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    """Answered by the broker at once: is anyone there?"""

    kind: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo(Message):
    """A no-op that goes all the way to an actor and back, for measurements and doctor."""

    kind: ClassVar[str] = "echo"
    payload: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus(Message):
    kind: ClassVar[str] = "get_status"


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersions(Message):
    """The current version table and the number of the last event it includes."""

    kind: ClassVar[str] = "get_versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall(Message):
    """Asks after requests of the same tenant to which no answer came. Each that has ended is answered once
    more, as far as that many bytes go at one time, each under way will be; the answer to this itself,
    Recalled, comes behind those. What is still missing then is asked after again."""

    kind: ClassVar[str] = "recall"
    requests: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(Message):
    """Stop the daemon: actors drain their mailboxes and answer what waits."""

    kind: ClassVar[str] = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """The one error reply. `code` is stable, see `errors`."""

    kind: ClassVar[str] = "failed"
    code: str
    message: str
    retryable: bool
    fault: Literal["user", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Message):
    """Not an answer yet: says what an admitted request waits for. Sent with `last` False.

    reason: empty when it waits no longer. routine: nothing is amiss, it is only not its turn yet;
    whoever has a screen need not say so.
    """

    kind: ClassVar[str] = "waiting"
    reason: str
    routine: bool = False
    cause: WaitCause = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """The request was carried out and has nothing more to say."""

    kind: ClassVar[str] = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Message):
    kind: ClassVar[str] = "pong"
    daemon_version: str
    uptime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Message):
    """unknown: requests that never arrived, or that left nothing behind: to be sent once more."""

    kind: ClassVar[str] = "recalled"
    unknown: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoed(Message):
    kind: ClassVar[str] = "echoed"
    payload: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One actor as the daemon sees it. waiting: requests handed to it and not yet answered. silent_s: since its
    last sign of life, stuck_s: since it last got on with its work, which is `stuck_at`; both 0 unless that is
    so long ago that it may hang."""

    actor: str
    role: ActorRole
    phase: ActorPhase
    pid: int
    restarts: int
    rss_bytes: int
    waiting: int
    details: str
    silent_s: float = 0.0
    stuck_s: float = 0.0
    stuck_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus(Message):
    """model_path: where the base model's files lie on the daemon's machine. put_off: adapters that cannot be
    brought back just now, which is tried again; another_base: those of them that are for another base model
    than this, or cannot be read. chaos: what `--chaos` did so far, in words; empty without. disk_free_bytes:
    where the journal lies; with less than disk_kept_bytes, which it keeps for outcomes, what is new is
    refused. Both 0 where there is no journal."""

    kind: ClassVar[str] = "daemon_status"
    daemon_version: str
    pid: int
    uptime_s: float
    state_dir: str
    base_model: str
    http: str
    actors: tuple[ActorStatus, ...]
    adapters: int
    versions: int
    last_event: int
    put_off: int = 0
    another_base: int = 0
    chaos: str = ""
    model_path: str = ""
    disk_free_bytes: int = 0
    disk_kept_bytes: int = 0

    @property
    def disk_is_full(self) -> bool:
        return self.disk_free_bytes < self.disk_kept_bytes
