"""Requests that wait in the broker: first come, first served within (tenant, destination).

A request waits because nobody of its kind is ready, or because its tenant has as many requests with
the actors as it may. None is ever dropped.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..bus.ids import TenantId
from .ledger import Ticket
from .routing import Destination


@dataclass(slots=True)
class Waitlist:
    """limit: requests of one tenant that actors hold at one time."""

    limit: int
    _with_actors: dict[TenantId, int] = field(default_factory=dict)
    _held: dict[TenantId, dict[Destination, deque[Ticket]]] = field(default_factory=dict)

    def tenants(self) -> list[TenantId]:
        """Those who have something waiting."""
        return [*self._held]

    def with_actors(self, tenant: TenantId) -> int:
        return self._with_actors.get(tenant, 0)

    def full(self, tenant: TenantId) -> bool:
        return self._with_actors.get(tenant, 0) >= self.limit

    def taken(self, tenant: TenantId) -> None:
        self._with_actors[tenant] = self._with_actors.get(tenant, 0) + 1

    def freed(self, tenant: TenantId) -> None:
        left = self._with_actors[tenant] - 1
        if left:
            self._with_actors[tenant] = left
        else:
            del self._with_actors[tenant]

    def hold(self, ticket: Ticket) -> None:
        queues = self._held.setdefault(ticket.key[0], {})
        queues.setdefault(ticket.destination, deque()).append(ticket)

    def remove(self, ticket: Ticket) -> None:
        self._held[ticket.key[0]][ticket.destination].remove(ticket)
        self._tidy(ticket.key[0], ticket.destination)

    def take(self, tenant: TenantId, runnable: Callable[[Destination], bool]) -> Ticket | None:
        """The tenant's earliest request for a destination that can take one now, off the list."""
        queues = self._held.get(tenant)
        if queues is None:  # the usual case, after every answer
            return None
        heads = [queue[0] for destination, queue in queues.items() if runnable(destination)]
        if not heads:
            return None
        first = min(heads, key=lambda ticket: ticket.arrival)
        queues[first.destination].popleft()
        self._tidy(tenant, first.destination)
        return first

    def take_all(self) -> list[Ticket]:
        """Everything that waits, in order of arrival."""
        held = [ticket for queues in self._held.values() for queue in queues.values() for ticket in queue]
        self._held.clear()
        return sorted(held, key=lambda ticket: ticket.arrival)

    def _tidy(self, tenant: TenantId, destination: Destination) -> None:
        queues = self._held[tenant]
        if not queues[destination]:
            del queues[destination]
        if not queues:
            del self._held[tenant]
