"""How many samples may be under way, and whose are too many: pure counting.

All of the room is anyone's while there is some left. Beyond that, only those are held back who have their
share of it: one tenant's long samples never stop another's.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..bus.ids import TenantId


class SampleRoom:
    """most: requests under way at which clients are told to slow down."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[TenantId] = Counter()

    def full(self, tenant: TenantId) -> bool:
        """Whether no more of this tenant's should come for a moment."""
        if self._taken.total() < self._most:
            return False
        tenants = len(self._taken.keys() | {tenant})
        return self._taken[tenant] >= max(1, self._most // tenants)

    @contextmanager
    def taken(self, tenant: TenantId, count: int = 1) -> Iterator[None]:
        """So many are under way."""
        self._taken[tenant] += count
        try:
            yield
        finally:
            self._taken[tenant] -= count
            if not self._taken[tenant]:
                del self._taken[tenant]
