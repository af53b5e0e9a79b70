"""How many samples may be under way, and whose are too many: pure counting.

All of the room is anyone's while there is some left. Beyond that, only those are held back who have their
share of it: one tenant's long samples never stop another's. And no tenant's may weigh too much.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..bus.ids import TenantId

# Of a sequence while it waits, here and with its sampler.
_SEQUENCE_BYTES = 4 * 2**10


def weight(size_bytes: int, sequences: int) -> int:
    """What a request takes while it is under way, in bytes. size_bytes: of what was sent, and of what that
    grows to."""
    return size_bytes + sequences * _SEQUENCE_BYTES


class SampleRoom:
    """most: requests under way at which clients are told to slow down. held_bytes: `weight` of one tenant's;
    0 is no bound."""

    def __init__(self, most: int, *, held_bytes: int = 0) -> None:
        self._most = most
        self._held_bytes = held_bytes
        self._taken: Counter[TenantId] = Counter()
        self._weights: Counter[TenantId] = Counter()

    def full(self, tenant: TenantId, weight_bytes: int = 0) -> bool:
        """Whether no more of this tenant's, or none that weighs so much, should come for a moment. One alone
        may weigh more than the bound."""
        held = self._weights[tenant]
        if self._held_bytes and held and held + weight_bytes > self._held_bytes:
            return True
        if self._taken.total() < self._most:
            return False
        tenants = len(self._taken.keys() | {tenant})
        return self._taken[tenant] >= max(1, self._most // tenants)

    @contextmanager
    def taken(self, tenant: TenantId, count: int = 1, *, weight_bytes: int = 0) -> Iterator[None]:
        """So many are under way, and weigh so much together."""
        self._taken[tenant] += count
        self._weights[tenant] += weight_bytes
        try:
            yield
        finally:
            for counter, amount in ((self._taken, count), (self._weights, weight_bytes)):
                counter[tenant] -= amount
                if not counter[tenant]:
                    del counter[tenant]
