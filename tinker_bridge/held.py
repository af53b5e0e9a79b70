"""What is under way for whom: a tenant's bytes, and the numbers of each run's operations. Pure."""

from collections import Counter, defaultdict

from ..bus.ids import TenantId


class Held:
    def __init__(self) -> None:
        self._bytes: Counter[TenantId] = Counter()
        self._numbers: defaultdict[str, set[int]] = defaultdict(set)

    def of_tenant(self, tenant: TenantId) -> int:
        """In bytes."""
        return self._bytes[tenant]

    def below_all(self, run: str, seq: int) -> bool:
        """Whether operations of this run are held, and all of them come behind this number."""
        return run in self._numbers and seq < min(self._numbers[run])

    def add(self, tenant: TenantId, run: str, seq: int | None, size_bytes: int) -> None:
        """seq: None came without a number."""
        self._bytes[tenant] += size_bytes
        if seq is not None:
            self._numbers[run].add(seq)

    def remove(self, tenant: TenantId, run: str, seq: int | None, size_bytes: int) -> None:
        self._bytes[tenant] -= size_bytes
        if not self._bytes[tenant]:
            del self._bytes[tenant]
        if seq is not None:
            self._numbers[run].discard(seq)
            if not self._numbers[run]:
                del self._numbers[run]
