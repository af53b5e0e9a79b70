"""Requests that wait in the broker until their adapter is brought back. Pure.

All of them are in the journal, which is read again when they go; only their sizes stay here.
"""

from collections import Counter
from collections.abc import Sequence

from ..bus.ids import AdapterId, TenantId
from .ledger import Ticket


class Parking:
    def __init__(self) -> None:
        self._waiting: dict[AdapterId, list[Ticket]] = {}
        self._bytes: Counter[TenantId] = Counter()

    def adapters(self) -> list[AdapterId]:
        return [*self._waiting]

    def of(self, adapter: AdapterId) -> Sequence[Ticket]:
        return self._waiting.get(adapter, ())

    def all(self) -> list[Ticket]:
        return [ticket for waiting in self._waiting.values() for ticket in waiting]

    def waiting_bytes(self, tenant: TenantId) -> int:
        return self._bytes[tenant]

    def park(self, ticket: Ticket) -> None:
        ticket.parked, ticket.frames = True, ()
        self._waiting.setdefault(ticket.adapter, []).append(ticket)
        self._bytes[ticket.key[0]] += ticket.size_bytes

    def unpark(self, ticket: Ticket) -> None:
        waiting = self._waiting[ticket.adapter]
        waiting.remove(ticket)
        if not waiting:
            del self._waiting[ticket.adapter]
        self._left(ticket)

    def release(self, adapter: AdapterId) -> list[Ticket]:
        """All of an adapter, in order of arrival."""
        released = sorted(self._waiting.pop(adapter, []), key=lambda ticket: ticket.number)
        for ticket in released:
            self._left(ticket)
        return released

    def _left(self, ticket: Ticket) -> None:
        ticket.parked = False
        tenant = ticket.key[0]
        self._bytes[tenant] -= ticket.size_bytes
        if not self._bytes[tenant]:
            del self._bytes[tenant]
