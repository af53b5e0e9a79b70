"""Adapter creations that wait for room in their tenant's quota: first come, first served, for a while.

Pure: what a tenant has is handed in, `now` is seconds of a monotonic clock. Creating is `desk`'s.
"""

from collections import deque
from dataclasses import dataclass

from ..bus.config import QuotasConfig
from ..bus.errors import InvalidRequest
from ..bus.ids import TenantId
from ..bus.messages import Envelope


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a tenant has registered. state_bytes: of all training states, wherever they lie."""

    adapters: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """A creation that waits. reason: why, and until when. until: when it is refused with `refusal`."""

    asker: Envelope
    reason: str
    refusal: str
    until: float


class Creations:
    def __init__(self, quotas: QuotasConfig) -> None:
        self._quotas = quotas
        self._held: dict[TenantId, deque[Held]] = {}

    def shortage(self, has: Belongings, state_bytes: int) -> str:
        """Why a tenant with these belongings gets no adapter of this size, in words; empty if it does.

        Raises:
            InvalidRequest: it is too large whatever the tenant deletes.
        """
        most, most_bytes = self._quotas.adapters, self._quotas.state_bytes
        if most_bytes and state_bytes > most_bytes:
            raise InvalidRequest(
                f"its training state takes {state_bytes:,} bytes, and one tenant may have {most_bytes:,} "
                "(quotas.state_bytes): choose a lower rank, or train less of the model"
            )
        if most and has.adapters >= most:
            return f"this tenant has {has.adapters:,} of at most {most:,} adapters (quotas.adapters)"
        if most_bytes and has.state_bytes + state_bytes > most_bytes:
            return (
                f"this tenant's training states take {has.state_bytes:,} of at most {most_bytes:,} bytes "
                f"(quotas.state_bytes), and this one {state_bytes:,}"
            )
        return ""

    def hold(self, asker: Envelope, shortage: str, now: float) -> Held:
        """Let a creation wait behind those of its tenant that wait already."""
        queue = self._held.setdefault(asker.tenant, deque())
        first = shortage or f"{len(queue)} creations of this tenant wait before it"
        wait_s = self._quotas.wait_s
        reason = f"{first}; it goes on when an adapter is deleted, within {wait_s:g} s"
        refusal = f"{first}, and {wait_s:g} s brought no room: delete an adapter, then ask again"
        queue.append(Held(asker, reason, refusal, until=now + wait_s))
        return queue[-1]

    def waiting(self, tenant: TenantId) -> list[Held]:
        return [*self._held.get(tenant, ())]

    def remove(self, held: Held) -> None:
        queue = self._held[held.asker.tenant]
        queue.remove(held)
        if not queue:
            del self._held[held.asker.tenant]

    def expired(self, now: float) -> list[Held]:
        """Those whose time is over, off the list."""
        late = [held for queue in self._held.values() for held in queue if held.until <= now]
        for held in late:
            self.remove(held)
        return late

    def take_all(self) -> list[Held]:
        held = [held for queue in self._held.values() for held in queue]
        self._held.clear()
        return held

    def next_due(self) -> float | None:
        """When the next one's time is over; None when none waits."""
        return min((queue[0].until for queue in self._held.values()), default=None)
