"""Which operations may hold arrays that are much larger than what was sent: a tenant's bound, and no deadlock.

A few hundred bytes can be valid arrays of a hundred megabytes, so such arrays are made when there is room for
them. An operation without them holds up its lane, though: what is first in its lane goes beyond the bound
where nothing that has room is, for then nothing of the tenant's would go on.
"""

import asyncio
from dataclasses import dataclass, field

from ..bus.ids import LaneId, TenantId


@dataclass(frozen=True, slots=True)
class Turn:
    """One operation's place."""

    tenant: TenantId
    lane: LaneId
    seq: int


@dataclass(slots=True)
class _Tenant:
    """admitted, waiting: sizes in bytes, the latter in the order in which they asked."""

    admitted: dict[Turn, int] = field(default_factory=dict)
    waiting: dict[Turn, int] = field(default_factory=dict)
    admissions: dict[Turn, asyncio.Event] = field(default_factory=dict)

    def is_first(self, turn: Turn) -> bool:
        known = [*self.admitted, *self.waiting]
        return all(turn.seq <= each.seq for each in known if each.lane == turn.lane)

    def next(self, most_bytes: int) -> Turn | None:
        """Who of those that wait may go now."""
        if not self.waiting:
            return None
        oldest, size_bytes = next(iter(self.waiting.items()))
        if sum(self.admitted.values()) + size_bytes <= most_bytes:
            return oldest
        if any(self.is_first(turn) for turn in self.admitted):
            return None
        return next(turn for turn in self.waiting if self.is_first(turn))


class ArrayRoom:
    """most_bytes: of one tenant's arrays; 0 is no bound."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._tenants: dict[TenantId, _Tenant] = {}

    def held_bytes(self, tenant: TenantId) -> int:
        found = self._tenants.get(tenant)
        return sum(found.admitted.values()) if found is not None else 0

    def enter(self, turn: Turn, size_bytes: int) -> bool:
        """Whether it may hold its arrays now; if not, let go of them and `wait`. Asked again, the same."""
        tenant = self._tenants.setdefault(turn.tenant, _Tenant())
        if turn not in tenant.admitted:
            tenant.waiting[turn] = size_bytes
            self._admit(tenant)
        return turn in tenant.admitted

    async def wait(self, turn: Turn) -> None:
        """Until it may; its room is kept for it."""
        tenant = self._tenants[turn.tenant]
        if turn not in tenant.admitted:
            await tenant.admissions.setdefault(turn, asyncio.Event()).wait()

    def leave(self, turn: Turn) -> None:
        """It holds them no more, or asks no more. Without having entered: nothing."""
        tenant = self._tenants.get(turn.tenant)
        if tenant is None:
            return
        for each in (tenant.admitted, tenant.waiting, tenant.admissions):
            each.pop(turn, None)
        self._admit(tenant)
        if not tenant.admitted and not tenant.waiting:
            del self._tenants[turn.tenant]

    def _admit(self, tenant: _Tenant) -> None:
        most_bytes = self._most_bytes or 2**63
        while (turn := tenant.next(most_bytes)) is not None:
            tenant.admitted[turn] = tenant.waiting.pop(turn)
            if (admission := tenant.admissions.pop(turn, None)) is not None:
                admission.set()
