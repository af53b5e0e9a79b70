"""What the journal means for requests: written before they run, told once their outcomes are written.

Joins the journal's side (`journaling`), what waits for the trainer's recovery (`recovery`) and the
way of requests (`dispatch`). Pure, as all of the broker.
"""

from collections.abc import Callable, Collection

from ..bus.codec import Header, with_fields
from ..bus.errors import (
    ActorStopping,
    AdapterNotFound,
    AnotherBase,
    CheckpointNotFound,
    LoractlError,
    Quarantined,
    RequestConflict,
    StorageFailed,
)
from ..bus.failures import failed
from ..bus.identities import unsolicited
from ..bus.ids import (
    NO_ADAPTER,
    NO_LANE,
    ActorId,
    AdapterId,
    LaneId,
    TenantId,
    new_adapter_id,
    new_lane_id,
)
from ..bus.lane_places import checked_place
from ..bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    Failed,
    KeepSnapshot,
    LoadCheckpoint,
    LoadVersion,
    OpenLane,
    SnapshotTaken,
)
from .decisions import Decision, Key, Tell, WriteDown
from .dispatch import Dispatch
from .harm import CRASH, KILL, QUARANTINE
from .journal.records import (
    Crashed,
    Damaged,
    Ended,
    Forgotten,
    Gone,
    Harmed,
    Logged,
    Past,
    Received,
    Record,
    Retried,
    Snapshot,
)
from .journaling import DURABLE, concerned
from .ledger import Ticket
from .pauses import PARTING
from .routing import DESTINATION_BY_KIND, ON_A_LANE

_KNOWN_OWNERS = 65_536
# The failure may be of what they load.
_FROM_A_SOURCE = frozenset({LoadCheckpoint.kind, LoadVersion.kind})
_DELETIONS = frozenset({DeleteAdapter.kind, DeleteCheckpoint.kind})
_NOT_THERE = frozenset({AdapterNotFound.code, CheckpointNotFound.code})


class Durability:
    """admit: sends a request on its way."""

    def __init__(
        self, dispatch: Dispatch, past: Past | None, admit: Callable[[Ticket, float], list[Decision]]
    ) -> None:
        self._dispatch = dispatch
        self._journaling = dispatch.journaling
        self._recovery = dispatch.recovery
        self._past = past
        self._admit = admit
        # As the journal says; adapters' ids never come again.
        self._owners: dict[AdapterId, TenantId] = {}
        if past is not None:
            for logged in past.unfinished():
                self._take_up(logged)

    # --- a request comes -------------------------------------------------------------------------

    def find(self, key: Key, digest: bytes) -> Logged | None:
        """What the journal has under this id, for one that the ledger does not know.

        Raises:
            RequestConflict: the id was used for another payload.
        """
        logged = self._past.find(key) if self._past is not None else None
        if logged is not None and logged.digest != digest:
            raise RequestConflict(
                f"request id {key[1]!r} was used before for something else: take a fresh id for every request"
            )
        return logged

    def first_outcome(self, logged: Logged) -> "tuple[bytes, ...]":
        assert self._past is not None
        return tuple(bytes(frame) for frame in self._past.outcome(logged.number))

    def take_in(self, ticket: Ticket, header: Header, logged: Logged | None) -> list[Decision] | None:
        """What comes of a request that is to be durable. None: it is not written down, and may go on its way.

        logged: the journal has it, with an outcome that was worth another try.

        Raises:
            LoractlError: it does not say what must be known of it.
        """
        if header.kind in ON_A_LANE:
            ticket.place = checked_place(header, ticket.frames, self._journaling.limits)
        if logged is not None:
            return self._run_again(ticket, logged)
        if header.kind not in DURABLE:
            return None
        lane = self._name(ticket, header)
        return [self._journaling.received(ticket, lane)] if self._journaling.covers(header.kind) else None

    def _name(self, ticket: Ticket, header: Header) -> LaneId:
        """Give a request the ids that it needs, whatever its client wrote there, and say which lane it opens.
        They are made here, so that it always gets the same."""
        lane = new_lane_id() if ticket.kind in (CreateAdapter.kind, OpenLane.kind) else NO_LANE
        if ticket.kind == CreateAdapter.kind:
            ticket.adapter = new_adapter_id()
            self._fill_in(ticket, adapter=ticket.adapter, lane=lane)
        else:
            named = ticket.place.adapter if ticket.place is not None else concerned(header)
            ticket.adapter = self._own(ticket.key[0], named)
            if ticket.kind == OpenLane.kind:
                self._fill_in(ticket, lane=lane)
        return lane

    def _run_again(self, ticket: Ticket, logged: Logged) -> list[Decision]:
        """Once the journal knows: what has an outcome is history that it may let go of. One that cannot be read
        keeps the outcome that it has."""
        assert self._past is not None
        ticket.frames = self._past.request(logged.number)
        self._journaling.taken_up(ticket, logged)
        ticket.sent = True
        return [self._journaling.retried(ticket)]

    # --- the journal answers ---------------------------------------------------------------------

    def written(self, record: Record, now: float) -> list[Decision]:
        """A record is durable."""
        match record:
            case Received(number=number) | Retried(number=number) if ticket := self._journaling.ticket(
                number
            ):
                return self._admit(ticket, now) if ticket.outcome is None else []
            case Ended(number=number) | Forgotten(number=number) if ticket := self._journaling.ticket(number):
                return self._dispatch.outcome_written(ticket, now)
            case Snapshot(adapter=adapter, name=name):
                return self._tell_trainer(KeepSnapshot(adapter=adapter, snapshot=name))
            case Damaged():
                return self._dispatch.released(self._recovery.written(record, now), now)
            case _:
                return []

    def refused(self, record: Record, reason: str, now: float) -> list[Decision]:
        """The journal could not take a record."""
        match record:
            case Received(number=number) | Retried(number=number) if ticket := self._journaling.ticket(
                number
            ):
                error = StorageFailed(f"the journal cannot be written: {reason}; nothing was changed")
                return self._dispatch.give_up(ticket, failed(error), now)
            case Snapshot():
                return []  # the trainer takes another one
            case _:
                return self._journaling.try_again(record, now)

    # --- the trainer -----------------------------------------------------------------------------

    def ready(self, trainer: ActorId, now: float) -> list[Decision]:
        return self._dispatch.released(self._recovery.trainer_ready(trainer, now), now)

    def lost(self, in_hand: Collection[Key], *, killed: bool, now: float) -> list[Decision]:
        """The trainer died. killed: somebody outside ended it. Comes before its requests are parked."""
        weight = KILL if killed else CRASH
        # One that is at work on the disk may be noted twice.
        noted = dict.fromkeys(in_hand)
        decisions = self._recovery.trainer_lost(noted, weight)
        tickets = [ticket for key in noted if (ticket := self._dispatch.ledger.find(key)) and ticket.number]
        suspects = [ticket for ticket in tickets if ticket.outcome is None]
        if suspects:
            numbers = tuple(ticket.number for ticket in suspects)
            decisions.append(WriteDown(Crashed(numbers=numbers, weight=weight)))
        for ticket in suspects:
            ticket.crashes += weight
            if ticket.crashes >= QUARANTINE:
                decisions += self._dispatch.end(ticket, failed(_quarantined(ticket)), now)
        return decisions

    def answered(self, ticket: Ticket, failure: Failed, *, draining: bool, now: float) -> list[Decision]:
        """The trainer refused a durable request in a way that is no outcome of it; else nothing."""
        elsewhere = failure.code == AnotherBase.code and ticket.kind not in _FROM_A_SOURCE
        if ticket.retried and elsewhere and ticket.adapter != NO_ADAPTER:
            put_off = self._recovery.put_off(ticket.adapter, failure.message, failure.code, now)
            return [*put_off, *self._dispatch.park(ticket)]
        if failure.code not in PARTING:
            return []
        if draining:
            return self._dispatch.leave(ticket, _parting(failure), now)
        return self._dispatch.park(ticket)

    def is_done(self, ticket: Ticket, failure: Failed) -> bool:
        """Whether a deletion runs again, and had its way the first time."""
        return ticket.retried and ticket.kind in _DELETIONS and failure.code in _NOT_THERE

    def snapshot(self, taken: SnapshotTaken) -> list[Decision]:
        """One of a trainer that has died since may hold what it never told us of."""
        believed = self._past is not None and self._recovery.takes_snapshot(taken.adapter)
        return [self._journaling.snapshot(taken)] if believed else []

    def gone(self, ticket: Ticket, now: float) -> list[Decision]:
        """An adapter was deleted for good. Comes before the outcome, so that the journal never has that alone."""
        if not ticket.number or not ticket.deletes:
            return []
        written = WriteDown(Gone(adapter=ticket.deletes))
        return [written, *self._dispatch.released(self._recovery.gone(ticket.deletes), now)]

    def owns(self, ticket: Ticket) -> bool:
        """Whether the journal knows the adapter that a request deletes for its tenant's."""
        return (
            self._past is not None
            and bool(ticket.deletes)
            and self._past.owner(ticket.deletes or NO_ADAPTER) == ticket.key[0]
        )

    def due(self, now: float) -> list[Decision]:
        again = self._dispatch.released(self._recovery.due(now), now)
        return [*map(self._renewed, self._journaling.due(now)), *again]

    def next_due(self) -> float:
        return min(self._journaling.next_due(), self._recovery.next_due())

    # --- small change ----------------------------------------------------------------------------

    def _renewed(self, decision: Decision) -> Decision:
        """What is tried once more says how it stands by now: a later weight may have been written since."""
        match decision:
            case WriteDown(record=Harmed(adapter=adapter)):
                return WriteDown(self._recovery.harmed(adapter))
            case _:
                return decision

    def _take_up(self, logged: Logged) -> None:
        """A request that an earlier process left unfinished."""
        destination = DESTINATION_BY_KIND[logged.kind]
        ledger = self._dispatch.ledger
        ticket = ledger.open(logged.key, logged.kind, logged.digest, destination, (), None)
        self._journaling.taken_up(ticket, logged)
        ticket.deletes = logged.adapter if logged.kind == DeleteAdapter.kind else None
        ticket.retried = True
        self._recovery.parking.park(ticket)

    def _own(self, tenant: TenantId, adapter: AdapterId) -> AdapterId:
        """The adapter, unless the journal knows it for another tenant's: what a stranger asks of it is answered
        by the trainer as for one that is not there, and must not stand among what its owner did."""
        if self._past is None or adapter == NO_ADAPTER:
            return adapter
        if adapter not in self._owners and (found := self._past.owner(adapter)) is not None:
            if len(self._owners) >= _KNOWN_OWNERS:
                self._owners.clear()
            self._owners[adapter] = found
        return adapter if self._owners.get(adapter, tenant) == tenant else NO_ADAPTER

    def _fill_in(self, ticket: Ticket, **fields: str) -> None:
        ticket.frames = [with_fields(ticket.frames[0], **fields), *ticket.frames[1:]]

    def _tell_trainer(self, body: KeepSnapshot) -> list[Decision]:
        trainer = self._recovery.trainer
        return [] if trainer is None else [Tell(trainer, unsolicited(body))]


def _quarantined(ticket: Ticket) -> LoractlError:
    return Quarantined(
        f"the trainer died again and again with this {ticket.kind} in hand; it is not tried any more. "
        "Your other operations go on; look at what this one holds before you send it once more"
    )


def _parting(failure: Failed) -> LoractlError:
    return ActorStopping(failure.message)
