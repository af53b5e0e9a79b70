"""Requests that wait in the broker: none is ever dropped, none overtakes what it depends on.

A request waits because nobody of its kind is ready, because its tenant has as many requests with the
actors as it may, or because the trainer holds as many of its tenant's positions as it may. What waits
of one lane goes in the order of its numbers; everything else of (tenant, destination) first come, first
served. Whether passes fit is `queued_positions`' to say.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.lane_places import LanePlace
from .ledger import Ticket
from .queued_positions import QueuedPositions
from .routing import Destination

# A lane by the arrival of the first that waits in it. It says nothing any more once another one is first.
_Turns = list[tuple[int, LaneId]]


@dataclass(slots=True)
class _Held:
    """What waits of one tenant. lanes: by number. passes: lanes whose first needs room; others: may go."""

    plain: dict[Destination, deque[Ticket]] = field(default_factory=dict)
    lanes: dict[LaneId, list[Ticket]] = field(default_factory=dict)
    passes: _Turns = field(default_factory=list)
    others: _Turns = field(default_factory=list)
    size_bytes: int = 0

    def __iter__(self) -> Iterator[Ticket]:
        for queue in (*self.plain.values(), *self.lanes.values()):
            yield from queue

    def first(self, turns: _Turns) -> Ticket | None:
        """The first of the lane whose turn it is."""
        while turns:
            arrival, lane = turns[0]
            if lane in self.lanes and self.lanes[lane][0].arrival == arrival:
                return self.lanes[lane][0]
            heappop(turns)
        return None


class Waitlist:
    """limit: requests of one tenant that actors hold at one time. queued_positions: of its passes, that
    the trainer holds. held_bytes: of one tenant's requests that wait here; 0 is no bound."""

    def __init__(self, limit: int, *, queued_positions: int = 0, held_bytes: int = 0) -> None:
        self.limit = limit
        self.positions = QueuedPositions(queued_positions)
        self.held_bytes = held_bytes
        self._with_actors: dict[TenantId, int] = {}
        self._held: dict[TenantId, _Held] = {}

    def tenants(self) -> list[TenantId]:
        """Those who have something waiting."""
        return [*self._held]

    def waiting_of(self, tenant: TenantId) -> dict[AdapterId, list[Ticket]]:
        """The operations that wait, per adapter."""
        found: dict[AdapterId, list[Ticket]] = {}
        for ticket in self._held.get(tenant, ()):
            if ticket.place is not None:
                found.setdefault(ticket.place.adapter, []).append(ticket)
        return found

    def waiting_bytes(self, tenant: TenantId) -> int:
        return self._held[tenant].size_bytes if tenant in self._held else 0

    def full(self, tenant: TenantId) -> bool:
        return self._with_actors.get(tenant, 0) >= self.limit

    def awaited(self, ticket: Ticket) -> bool:
        """Whether its lane at the trainer may stand still until it comes: it needs no place of its tenant's."""
        return ticket.place is not None and self.positions.is_awaited(ticket.key[0], ticket.place)

    def ahead(self, ticket: Ticket) -> Ticket | None:
        """The operation of its lane that waits here and comes before it."""
        held = self._held.get(ticket.key[0])
        if held is None or ticket.place is None:
            return None
        lane = held.lanes.get(ticket.place.lane)
        return lane[0] if lane and _number(lane[0]) <= ticket.place.seq else None

    def fits(self, ticket: Ticket) -> bool:
        """Whether a pass that just came may go to the trainer now: there is room, and none waits for it."""
        tenant, place = ticket.key[0], ticket.place
        if place is None:
            return True
        held = self._held.get(tenant)
        none_wait = held is None or held.first(held.passes) is None
        if none_wait and self.positions.has_room(tenant, place):  # the usual case
            return True
        return self.positions.is_due(tenant, place)

    def taken(self, ticket: Ticket) -> None:
        """An actor has it."""
        tenant = ticket.key[0]
        self._with_actors[tenant] = self._with_actors.get(tenant, 0) + 1
        if ticket.place is not None:
            self.positions.taken(tenant, ticket.place)

    def freed(self, ticket: Ticket) -> None:
        """An actor is done with it."""
        tenant = ticket.key[0]
        left = self._with_actors[tenant] - 1
        if left:
            self._with_actors[tenant] = left
        else:
            del self._with_actors[tenant]
        if ticket.place is not None:
            self.positions.freed(tenant, ticket.place)
            if tenant in self._held:
                self._look_again(tenant, ticket.place.lane)

    def hold(self, ticket: Ticket) -> None:
        held = self._held.setdefault(ticket.key[0], _Held())
        held.size_bytes += ticket.size_bytes
        if ticket.place is None:
            held.plain.setdefault(ticket.destination, deque()).append(ticket)
            return
        insort(held.lanes.setdefault(ticket.place.lane, []), ticket, key=_number)
        if held.lanes[ticket.place.lane][0] is ticket:
            self._line_up(held, ticket)

    def remove(self, ticket: Ticket) -> None:
        held = self._held[ticket.key[0]]
        held.size_bytes -= ticket.size_bytes
        if ticket.place is None:
            held.plain[ticket.destination].remove(ticket)
            if not held.plain[ticket.destination]:
                del held.plain[ticket.destination]
        else:
            self._leave_lane(held, ticket, held.lanes[ticket.place.lane])
        if not held.plain and not held.lanes:
            del self._held[ticket.key[0]]

    def take(self, tenant: TenantId, runnable: Callable[[Destination], bool]) -> Ticket | None:
        """The tenant's earliest request that may go now, off the list."""
        held = self._held.get(tenant)
        if held is None:  # the usual case, after every answer
            return None
        heads = [queue[0] for destination, queue in held.plain.items() if runnable(destination)]
        if held.lanes and runnable(Destination.TRAINER):
            heads += self._heads_of_lanes(tenant, held)
        if not heads:
            return None
        first = min(heads, key=lambda ticket: ticket.arrival)
        self.remove(first)
        return first

    def take_awaited(self, tenant: TenantId, lane: LaneId) -> Ticket | None:
        """What the lane at the trainer may stand still for, off the list."""
        held = self._held.get(tenant)
        waiting = held.lanes.get(lane) if held is not None else None
        if not waiting or not self.awaited(waiting[0]):
            return None
        first = waiting[0]
        self.remove(first)
        return first

    def take_all(self) -> list[Ticket]:
        """Everything that waits, in order of arrival."""
        waiting = [ticket for held in self._held.values() for ticket in held]
        self._held.clear()
        return sorted(waiting, key=lambda ticket: ticket.arrival)

    def _heads_of_lanes(self, tenant: TenantId, held: _Held) -> Iterator[Ticket]:
        while (due := held.first(held.others)) is not None:
            if self.positions.is_due(tenant, _place(due)):
                yield due
                break
            heappush(held.passes, heappop(held.others))  # what it depended on has changed since
        first = held.first(held.passes)
        if first is not None and self.positions.has_room(tenant, _place(first)):
            yield first

    def _leave_lane(self, held: _Held, ticket: Ticket, lane: list[Ticket]) -> None:
        was_first = lane[0] is ticket
        lane.remove(ticket)
        if not lane:
            del held.lanes[_place(ticket).lane]
        elif was_first:
            self._line_up(held, lane[0])

    def _line_up(self, held: _Held, first: Ticket) -> None:
        """Another operation is its lane's first now."""
        due = self.positions.is_due(first.key[0], _place(first))
        heappush(held.others if due else held.passes, (first.arrival, _place(first).lane))

    def _look_again(self, tenant: TenantId, lane: LaneId) -> None:
        """The trainer is done with an operation of a lane: it may wait for one of those here now."""
        waiting = self._held[tenant].lanes.get(lane)
        if waiting and self.positions.is_due(tenant, _place(waiting[0])):
            self._line_up(self._held[tenant], waiting[0])


def _place(ticket: Ticket) -> LanePlace:
    assert ticket.place is not None, "it waits in a lane"
    return ticket.place


def _number(ticket: Ticket) -> int:
    return _place(ticket).seq
