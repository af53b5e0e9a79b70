"""What the broker writes down, and what it reads again after a restart. Plain data; no SQLite.

A request has a number, given in the order of arrival, and an outcome later. Outcomes and snapshots share
one order of their own, the order in which the broker heard of them: an adapter's operations ended in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ...bus.ids import AdapterId, LaneId, TenantId
from ...bus.messages import LanePosition
from ..decisions import Frames, Key


# The two that every operation has are made in a tenth of a dataclass's time.
class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is to be durable before anybody acts on it.

    digest: of its payload (`bus.codec.payload_digest`), before the broker filled anything in. frames: as
    they go to the trainer. adapter: whom it concerns. lane, seq: of an operation; "" and 0 of others.
    """

    number: int
    key: Key
    kind: str
    digest: bytes
    adapter: AdapterId
    lane: LaneId
    seq: int
    frames: Frames


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A request's outcome, durable before anybody is told. order: see above.

    again: it may succeed on another try, so sending the request again runs it again.
    """

    number: int
    order: int
    frames: Frames
    failed: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """A request that was refused before any actor saw it: it never was."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A request whose outcome was worth another try runs again: it stays until it has another outcome."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole snapshot of an adapter. positions: what of its lanes it holds (`SnapshotTaken`)."""

    order: int
    adapter: AdapterId
    name: str
    step: int
    digest: str
    positions: tuple[LanePosition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A snapshot that could not be read: it counts no more."""

    adapter: AdapterId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """An adapter was deleted: its snapshots and operations are needed no more. Outcomes stay their time."""

    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """The trainer died while it had these requests in hand. weight: added to their `crashes`."""

    numbers: tuple[int, ...]
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Harmed:
    """The trainer died while it brought this adapter back. weight: of all its deaths so far; 0 forgets them."""

    adapter: AdapterId
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDeleted:
    """A published version that is to go, also if its directory turns up again."""

    tenant: TenantId
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """Events up to this number are out, or on their way."""

    last_event: int


Record = (
    Received
    | Ended
    | Forgotten
    | Retried
    | Snapshot
    | Damaged
    | Gone
    | Crashed
    | Harmed
    | VersionDeleted
    | Numbered
)
# For `isinstance`, which takes much longer with a union.
WITH_FRAMES = (Received, Ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A request as the journal has it, without its frames (size_bytes). order: of its outcome, None while it
    has none. whole: its frames are there; those of history go first when bytes are too many."""

    number: int
    key: Key
    kind: str
    digest: bytes
    adapter: AdapterId
    lane: LaneId
    seq: int
    order: int | None = None
    failed: bool = False
    again: bool = False
    crashes: int = 0
    came_unix_s: float = 0.0
    size_bytes: int = 0
    whole: bool = True


class Past(Protocol):
    """What the journal holds, read in the broker's loop. Sees everything that was committed."""

    def last_number(self) -> int:
        """The highest number and order in use, 0 for none: new ones are higher than both."""

    def find(self, key: Key) -> Logged | None: ...

    def unfinished(self) -> Sequence[Logged]:
        """All without an outcome, in order of arrival."""

    def opened(self, adapter: AdapterId) -> Sequence[tuple[LaneId, int]]:
        """Lanes that requests opened, and the orders of these requests' outcomes."""

    def adapters(self) -> Sequence[AdapterId]:
        """Those that have anything to run again: operations that their newest snapshot does not hold."""

    def snapshot(self, adapter: AdapterId) -> Snapshot | None:
        """The newest that counts."""

    def begins(self, adapter: AdapterId) -> bool:
        """Whether the journal has the adapter from its creation on, whole."""

    def lanes(self, adapter: AdapterId) -> Sequence[LanePosition]:
        """The lanes that are open after the newest snapshot: its own, and from 1 those opened since."""

    def after(self, adapter: AdapterId) -> Sequence[Logged]:
        """The adapter's operations that its newest snapshot does not hold, and the unloads between them: first
        what has an outcome, in the order of the outcomes, then the others in order of arrival."""

    def harmed(self) -> Mapping[AdapterId, int]:
        """The adapters that trainers died of while they brought them back (`Harmed`), and their weights."""

    def owner(self, adapter: AdapterId) -> TenantId | None:
        """Whose the adapter is; None where the journal has nothing of it."""

    def numbered(self, number: int) -> Logged | None: ...

    def history(self, adapter: AdapterId, after: int, limit: int) -> Sequence[Logged]:
        """The adapter's operations and unloads that ended behind the order `after`, in that order; then, where
        they fit into the limit, those that did not end yet."""

    def request(self, number: int) -> Frames:
        """The frames of a request that is whole."""

    def outcome(self, number: int) -> Frames:
        """An outcome's frames."""

    def last_event(self) -> int:
        """The number of the last event, 0 for none."""

    def deleted_versions(self) -> Sequence[VersionDeleted]: ...
