"""How many positions of each tenant the trainer holds, and which operations may add to them.

An operation that its lane at the trainer may be waiting for always goes: were it kept back, what came
behind it could never run, and never make room. Pure.
"""

from dataclasses import dataclass, field

from ..bus.ids import LaneId, TenantId
from ..bus.lane_places import LanePlace


@dataclass(slots=True)
class _Tenant:
    """lanes: the numbers of the operations with the trainer, and how often each was sent."""

    positions: int = 0
    lanes: dict[LaneId, dict[int, int]] = field(default_factory=dict)


@dataclass(slots=True)
class QueuedPositions:
    """limit: positions of one tenant's forward_backwards that the trainer holds; 0 is no bound."""

    limit: int
    _tenants: dict[TenantId, _Tenant] = field(default_factory=dict)

    def of(self, tenant: TenantId) -> int:
        return self._tenants[tenant].positions if tenant in self._tenants else 0

    def taken(self, tenant: TenantId, place: LanePlace) -> None:
        has = self._tenants.get(tenant)
        if has is None:
            has = self._tenants[tenant] = _Tenant()
        has.positions += place.positions
        numbers = has.lanes.setdefault(place.lane, {})
        numbers[place.seq] = numbers.get(place.seq, 0) + 1

    def freed(self, tenant: TenantId, place: LanePlace) -> None:
        has = self._tenants[tenant]
        has.positions -= place.positions
        numbers = has.lanes[place.lane]
        if numbers[place.seq] > 1:
            numbers[place.seq] -= 1
            return
        del numbers[place.seq]
        if not numbers:
            del has.lanes[place.lane]
            if not has.lanes:
                del self._tenants[tenant]

    def has_room(self, tenant: TenantId, place: LanePlace) -> bool:
        """Whether it fits. One that is larger than the limit does when nothing else is with the trainer."""
        has = self._tenants.get(tenant)
        if has is None or not self.limit or has.positions == 0:
            return True
        return has.positions + place.positions <= self.limit

    def is_due(self, tenant: TenantId, place: LanePlace) -> bool:
        """Whether it goes in any case: it is no pass, or its lane at the trainer may wait for it.

        Numbers overtake each other on their way, so one of many that an operation overtook is due, too;
        beyond twice the limit only what comes before all that the trainer holds of its lane. So nobody
        gets around the limit by sending the last number first.
        """
        if not place.positions:
            return True
        has = self._tenants.get(tenant)
        numbers = has.lanes.get(place.lane) if has is not None else None
        if has is None or not numbers:
            return False
        overtaken = place.seq < max(numbers) and has.positions + place.positions <= 2 * self.limit
        return overtaken or self.is_awaited(tenant, place)

    def is_awaited(self, tenant: TenantId, place: LanePlace) -> bool:
        """Whether it comes before all that the trainer holds of its lane, which may then run nothing else."""
        has = self._tenants.get(tenant)
        numbers = has.lanes.get(place.lane) if has is not None else None
        return bool(numbers) and all(place.seq < number for number in numbers or ())
