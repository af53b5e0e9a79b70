"""Whose sequence runs next on an engine that takes only so many at a time. Pure.

Tenants take turns; within a tenant, first come, first served. So a tenant who asks for a thousand
samples delays another's single one by at most one sequence per tenant that waits.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

from ..bus.ids import TenantId

Who = TypeVar("Who")


class Turns(Generic[Who]):
    def __init__(self, places: int) -> None:
        self._places = places
        self._running: set[Who] = set()
        # The tenant at the front is next; it goes to the back when one of its own starts.
        self._waiting: OrderedDict[TenantId, deque[Who]] = OrderedDict()

    def enter(self, tenant: TenantId, who: Who) -> list[Who]:
        """Queue up. Returns who may start now."""
        self._waiting.setdefault(tenant, deque()).append(who)
        return self._grant()

    def leave(self, who: Who) -> list[Who]:
        """Done, or gave up waiting. Returns who may start now."""
        if who in self._running:
            self._running.remove(who)
        else:
            self._forget(who)
        return self._grant()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def _forget(self, who: Who) -> None:
        for tenant, queue in self._waiting.items():
            if who in queue:
                queue.remove(who)
                if not queue:
                    del self._waiting[tenant]
                return

    def _grant(self) -> list[Who]:
        granted = []
        while self._waiting and len(self._running) < self._places:
            tenant, queue = self._waiting.popitem(last=False)
            who = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            self._running.add(who)
            granted.append(who)
        return granted
