"""What of its past the journal needs, and what it may let go of. Pure.

Recovery begins at an adapter's newest snapshot, or at the one before it where that is damaged. So what
that older one does not hold is needed; all else is history, kept for as long as the settings say.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum, auto

from ...bus.ids import AdapterId, LaneId
from ...bus.messages import UnloadAdapter
from .records import Snapshot


@dataclass(frozen=True, slots=True)
class Entry:
    """A request as far as its keeping goes. order: of its outcome; None while it has none. again: it would
    run again if it were sent again. came: seconds since 1970. size_bytes: of its frames; whole: the journal
    still has them."""

    number: int
    kind: str
    adapter: AdapterId
    lane: LaneId
    seq: int
    order: int | None
    again: bool
    came: float
    size_bytes: int
    whole: bool


class Verdict(Enum):
    KEEP = auto()
    STRIP = auto()
    """Its frames go: it cannot be run again. Its outcome stays for whoever sends it again."""
    DELETE = auto()


class Want(Enum):
    """What is to become of history."""

    NO_OLD = auto()
    """What is too old goes."""
    FEWER_BYTES = auto()
    """All frames go, the oldest first, until the bytes fit."""
    FEWEST_BYTES = auto()
    """All goes, the oldest first, until the bytes fit."""


@dataclass(frozen=True, slots=True)
class Needed:
    """lanes: that run again, and from which number on; 0 is the lane's opening itself. unloads: those whose
    outcomes have a higher order ended one of these lanes, so they run again as well."""

    lanes: Mapping[LaneId, int] = field(default_factory=dict)
    unloads: float = math.inf


def needed_from(snapshot: Snapshot | None, opened: Iterable[tuple[LaneId, int]]) -> Needed:
    """What runs again from this snapshot. opened: lanes that requests with these outcomes opened."""
    began = dict(opened)
    since = snapshot.order if snapshot is not None else 0
    fresh = {lane: 0 for lane, order in began.items() if order > since}
    held = {each.lane: each.next_seq for each in snapshot.positions} if snapshot is not None else {}
    lanes = fresh | held
    return Needed(lanes, min((since if lane in held else began[lane] for lane in lanes), default=math.inf))


def judge(entry: Entry, needed: Needed, want: Want, *, oldest: float) -> Verdict:
    """needed: of its adapter. oldest: what came before is too old."""
    if entry.order is None or entry.seq >= needed.lanes.get(entry.lane, math.inf):
        return Verdict.KEEP
    if entry.kind == UnloadAdapter.kind and entry.order > needed.unloads:
        return Verdict.KEEP
    if entry.came < oldest or want is Want.FEWEST_BYTES:
        return Verdict.DELETE
    if want is Want.FEWER_BYTES and entry.whole and not entry.again:
        return Verdict.STRIP
    return Verdict.KEEP


def did_something(entry: Entry, opened: Set[LaneId]) -> bool:
    """Whether it is a part of what its adapter came to: without it the adapter's history is not whole. opened:
    the adapter's lanes; what was asked for on others was refused."""
    return bool(entry.adapter) and (entry.lane in opened or entry.kind == UnloadAdapter.kind)
