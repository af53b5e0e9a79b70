"""How many bytes on disk each tenant has of what it asked to be kept, and whether there is room for more. Pure.

Counted are checkpoints, an adapter's together, and published versions, each by itself. What the trainer keeps
for itself (snapshots, states that were set aside) is nobody's wish, and bounded elsewhere.
"""

from collections import Counter
from dataclasses import dataclass

from ..bus.errors import DiskQuotaExceeded
from ..bus.ids import AdapterId, TenantId

# An adapter's checkpoints; or one of its versions, by number.
Kept = AdapterId | tuple[AdapterId, int]


@dataclass(frozen=True, slots=True)
class Room:
    """What a tenant may still have kept. Others' deletions may only make it larger than it says."""

    has_bytes: int = 0
    most_bytes: int = 0

    def check(self, what: str, size_bytes: int) -> None:
        """Raises DiskQuotaExceeded."""
        if self.most_bytes and self.has_bytes + size_bytes > self.most_bytes:
            raise DiskQuotaExceeded(
                f"cannot {what}: this tenant's checkpoints and published versions take {self.has_bytes:,} of at "
                f"most {self.most_bytes:,} bytes (quotas.checkpoint_bytes), and this takes {size_bytes:,} more: "
                "delete checkpoints or sampler weights that are not needed any more, then ask again"
            )


UNBOUND = Room()


class DiskQuota:
    """most_bytes: of each tenant; 0 is no bound."""

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[Kept, tuple[TenantId, int]] = {}
        self._taken: Counter[TenantId] = Counter()

    def taken(self, tenant: TenantId) -> int:
        return self._taken[tenant]

    def size(self, kept: Kept) -> int:
        return self._kept[kept][1] if kept in self._kept else 0

    def takes(self, tenant: TenantId, kept: Kept, size_bytes: int) -> None:
        """From now on it takes so much."""
        self.gone(kept)
        if size_bytes:
            self._kept[kept] = (tenant, size_bytes)
            self._taken[tenant] += size_bytes

    def gone(self, kept: Kept) -> None:
        """It was deleted. Again is fine."""
        tenant, size_bytes = self._kept.pop(kept, (TenantId(""), 0))
        self._taken[tenant] -= size_bytes
        if not self._taken[tenant]:
            del self._taken[tenant]

    def room(self, tenant: TenantId, *, replaced_bytes: int = 0) -> Room:
        """replaced_bytes: of what goes when the new is there."""
        return Room(self._taken[tenant] - replaced_bytes, self._most_bytes)
