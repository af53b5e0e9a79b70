"""What the broker writes down, and when what was written lets go of whom. Pure.

A durable request waits here until the journal has it, and its outcome until the journal has that. What
the journal refuses (a full disk) is answered if nobody acted on it yet, and else tried again.
"""

import math
from dataclasses import dataclass, field

from ..bus.codec import Header, peek
from ..bus.config import LimitsConfig
from ..bus.ids import NO_ADAPTER, NO_LANE, AdapterId, LaneId
from ..bus.lane_places import lane_place
from ..bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    OpenLane,
    SnapshotTaken,
    UnloadAdapter,
)
from .answers import notice
from .decisions import Decision, Frames, WriteDown
from .journal.records import Ended, Forgotten, Logged, Past, Received, Record, Retried, Snapshot
from .ledger import Ticket
from .routing import ON_A_LANE

DURABLE = ON_A_LANE | {
    request.kind for request in (CreateAdapter, OpenLane, DeleteAdapter, UnloadAdapter, DeleteCheckpoint)
}
_TRY_AGAIN_S = 1.0


@dataclass(slots=True)
class Journaling:
    """past: what the journal holds; None keeps nothing."""

    past: Past | None
    limits: LimitsConfig
    _last: int = 0
    _tickets: dict[int, Ticket] = field(default_factory=dict)
    _refused: list[Record] = field(default_factory=list)
    _again_at: float = math.inf

    def __post_init__(self) -> None:
        self._last = self.past.last_number() if self.past is not None else 0

    def covers(self, kind: str) -> bool:
        return self.past is not None and kind in DURABLE

    # --- writing down ----------------------------------------------------------------------------

    def received(self, ticket: Ticket, lane: LaneId = NO_LANE) -> Decision:
        """A request is to be durable, as it will go to the trainer. lane: that it will open."""
        ticket.number = self._next()
        ticket.size_bytes = sum(map(len, ticket.frames))
        self._tickets[ticket.number] = ticket
        place = ticket.place
        return WriteDown(
            Received(
                number=ticket.number,
                key=ticket.key,
                kind=ticket.kind,
                digest=ticket.digest,
                adapter=ticket.adapter,
                lane=place.lane if place is not None else lane,
                seq=place.seq if place is not None else 0,
                frames=ticket.frames,
            )
        )

    def taken_up(self, ticket: Ticket, logged: Logged) -> None:
        """A request that the journal has already is under way again."""
        ticket.number, ticket.adapter, ticket.crashes = logged.number, logged.adapter, logged.crashes
        ticket.size_bytes = logged.size_bytes
        self._tickets[logged.number] = ticket

    def retried(self, ticket: Ticket) -> Decision:
        """One that has an outcome is to run once more."""
        return WriteDown(Retried(number=ticket.number))

    def read_again(self, ticket: Ticket) -> None:
        """Take up the frames of a request that went to an actor once."""
        assert self.past is not None
        ticket.frames = self.past.request(ticket.number)
        if ticket.kind in ON_A_LANE and ticket.place is None:
            ticket.place = lane_place(peek(ticket.frames[0], self.limits), ticket.frames)

    def ended(self, ticket: Ticket, frames: Frames, *, failed: bool, again: bool) -> Decision:
        """An outcome is to be durable. One that no actor saw, and that may be tried again, never was."""
        if again and not ticket.seen:
            return WriteDown(Forgotten(number=ticket.number))
        order = self._next()
        return WriteDown(Ended(number=ticket.number, order=order, frames=frames, failed=failed, again=again))

    def snapshot(self, taken: SnapshotTaken) -> Decision:
        return WriteDown(
            Snapshot(
                order=self._next(),
                adapter=taken.adapter,
                name=taken.snapshot,
                step=taken.step,
                digest=taken.digest,
                positions=taken.lanes,
            )
        )

    # --- written down, or not --------------------------------------------------------------------

    def ticket(self, number: int) -> Ticket | None:
        return self._tickets.get(number)

    def close(self, ticket: Ticket) -> None:
        """Nobody waits for the journal on its account any more."""
        self._tickets.pop(ticket.number, None)

    def try_again(self, record: Record, now: float) -> list[Decision]:
        """Keep what must not get lost until the journal takes it; whoever waits for it is told."""
        self._refused.append(record)
        self._again_at = now + _TRY_AGAIN_S
        ticket = self._tickets.get(record.number) if isinstance(record, Ended) else None
        if ticket is None:
            return []
        ticket.waits_for = "the journal cannot be written: the daemon's disk is full or fails"
        return [notice(client, ticket) for client in ticket.waiters]

    def due(self, now: float) -> list[Decision]:
        """What was refused, once more."""
        if now < self._again_at:
            return []
        refused, self._refused, self._again_at = self._refused, [], math.inf
        return [WriteDown(record) for record in refused]

    def next_due(self) -> float:
        return self._again_at

    def _next(self) -> int:
        self._last += 1
        return self._last


def concerned(header: Header) -> AdapterId:
    """The adapter that a request names; "" for none."""
    named = header.fields.get("adapter")
    return AdapterId(named) if isinstance(named, str) else NO_ADAPTER
