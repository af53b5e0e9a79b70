"""How fast a tenant may send: a token bucket for requests and one for bytes. Pure: `now` is an argument.

A bucket may go into debt by one request, so that what is larger than a bucket passes too, and nobody has
to say beforehand how much is coming. In debt, everything else waits until the debt is paid.
"""

from dataclasses import dataclass, field

from ..bus.ids import TenantId

# What somebody who was quiet may send at once, in seconds of the rate: a client's batch comes in one go.
BURST_S = 10.0
# Tenants that have been quiet for long are forgotten; from so many on it is looked for them.
_LOOK_FROM = 1024


@dataclass(slots=True)
class Bucket:
    """per_s: how fast it fills, up to `BURST_S` of it; 0 is no bound. at: when it was full."""

    per_s: float
    at: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.per_s * BURST_S

    def wait_s(self, now: float) -> float:
        """How long until something may be taken; 0 for now."""
        self._fill(now)
        return -self.left / self.per_s if self.per_s and self.left < 0 else 0.0

    def take(self, amount: float, now: float) -> None:
        self._fill(now)
        self.left -= amount if self.per_s else 0.0

    def is_full(self, now: float) -> bool:
        self._fill(now)
        return self.left >= self.per_s * BURST_S

    def _fill(self, now: float) -> None:
        self.left = min(self.per_s * BURST_S, self.left + (now - self.at) * self.per_s)
        self.at = now


class Rates:
    """The buckets of every tenant that sent something lately."""

    def __init__(self, *, requests_per_s: float, bytes_per_s: float) -> None:
        """0 is no bound."""
        self._per_s = (requests_per_s, bytes_per_s)
        self._buckets: dict[TenantId, tuple[Bucket, Bucket]] = {}

    def wait_s(self, tenant: TenantId, now: float) -> tuple[float, str]:
        """How long a request has to wait, 0 for not at all; and which setting makes it wait."""
        requests, sent = self._of(tenant, now)
        waits = (
            (requests.wait_s(now), "quotas.requests_per_s"),
            (sent.wait_s(now), "quotas.request_bytes_per_s"),
        )
        return max(waits)

    def count_request(self, tenant: TenantId, now: float) -> None:
        self._of(tenant, now)[0].take(1, now)

    def count_bytes(self, tenant: TenantId, size_bytes: int, now: float) -> None:
        self._of(tenant, now)[1].take(size_bytes, now)

    def _of(self, tenant: TenantId, now: float) -> tuple[Bucket, Bucket]:
        found = self._buckets.get(tenant)
        if found is None:
            if len(self._buckets) >= _LOOK_FROM:
                self._forget_quiet(now)
            found = self._buckets[tenant] = (Bucket(self._per_s[0], now), Bucket(self._per_s[1], now))
        return found

    def _forget_quiet(self, now: float) -> None:
        self._buckets = {
            tenant: both
            for tenant, both in self._buckets.items()
            if not all(each.is_full(now) for each in both)
        }
