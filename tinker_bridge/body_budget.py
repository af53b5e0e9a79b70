"""How many bytes of bodies may be here at one time: being read, or read and not answered yet.

Beyond a tenant's share its next bytes are left in their sockets until others of its bodies are done with.
Beyond what all may have together, what is new is told to come again.
"""

import asyncio
from dataclasses import dataclass, field

from ..bus.errors import QuotaExceeded
from ..bus.ids import TenantId

MOST_BYTES = 2 * 2**30
SHARE_BYTES = 512 * 2**20


@dataclass(eq=False, slots=True)
class Reading:
    """One body. whole: all of it is here."""

    tenant: TenantId | None
    size_bytes: int = 0
    whole: bool = False


@dataclass(slots=True)
class _Tenant:
    """readings: oldest first; held_bytes: of all of them. changed: set, and replaced, when one of them is done with."""

    readings: dict[Reading, None] = field(default_factory=dict)
    held_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def may_take(self, reading: Reading, size_bytes: int, share_bytes: int) -> bool:
        if self.held_bytes + size_bytes <= share_bytes:
            return True
        # One must get to its end, or all would wait for each other; whole ones end by themselves.
        return reading is next(iter(self.readings)) and not any(each.whole for each in self.readings)


class BodyBudget:
    def __init__(self, most_bytes: int = MOST_BYTES, share_bytes: int = SHARE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._share_bytes = share_bytes
        self._held_bytes = 0
        self._tenants: dict[TenantId | None, _Tenant] = {}

    def open(self, tenant: TenantId | None) -> Reading:
        reading = Reading(tenant)
        self._tenants.setdefault(tenant, _Tenant()).readings[reading] = None
        return reading

    async def take(self, reading: Reading, size_bytes: int) -> None:
        """Wait until there is room for so many more.

        Raises:
            QuotaExceeded: there is none for anybody.
        """
        tenant = self._tenants[reading.tenant]
        while not tenant.may_take(reading, size_bytes, self._share_bytes):
            await tenant.changed.wait()
        if self._held_bytes + size_bytes > self._most_bytes:
            raise QuotaExceeded("too many large requests come at once: send this again in a moment")
        reading.size_bytes += size_bytes
        tenant.held_bytes += size_bytes
        self._held_bytes += size_bytes

    def close(self, reading: Reading) -> None:
        self._held_bytes -= reading.size_bytes
        tenant = self._tenants[reading.tenant]
        del tenant.readings[reading]
        tenant.held_bytes -= reading.size_bytes
        tenant.changed.set()
        tenant.changed = asyncio.Event()
        if not tenant.readings:
            del self._tenants[reading.tenant]
