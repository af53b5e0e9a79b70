"""Who asks for what, and when: tenants of two sizes, and three ways for their steps to arrive.

A step is a forward_backward and the optim_step behind it, sent together as the SDK does. Everything is
drawn from one seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from loractl.bus.ids import AdapterId, TenantId
from numpy.typing import NDArray

LIGHT = (16,)
HEAVY = (256,) * 64
RANKS = (8, 8, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant with one adapter. lengths: positions of each datum of its steps."""

    number: int
    lengths: tuple[int, ...]
    rank: int = 8
    weight: float = 1.0

    @property
    def id(self) -> TenantId:
        return TenantId(f"tenant-{self.number:05}")

    @property
    def adapter(self) -> AdapterId:
        return AdapterId(f"ad-{self.number:032x}")

    @property
    def light(self) -> bool:
        return self.lengths == LIGHT

    @property
    def positions(self) -> int:
        return sum(self.lengths)


def mixed_tenants(count: int, heavy_share: float, seed: int) -> list[Tenant]:
    """So many tenants, a share of them heavy, of several ranks, in no order of popularity."""
    draw = np.random.default_rng(seed)
    heavy = draw.random(count) < heavy_share
    ranks = draw.choice(RANKS, count)
    return [Tenant(i, HEAVY if heavy[i] else LIGHT, int(ranks[i])) for i in range(count)]


def popularity(count: int, exponent: float) -> NDArray[np.float64]:
    """Zipf's law: the share of the tenant of rank k goes as 1 / k**exponent."""
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(shares / shares.sum())


class OpenLoop:
    """Steps come whether or not earlier ones are done: Poisson, the tenant of each drawn by Zipf's law."""

    def __init__(
        self, tenants: Sequence[Tenant], *, steps: int, per_s: float, exponent: float, seed: int
    ) -> None:
        draw = np.random.default_rng([seed, 1])
        times = np.cumsum(draw.exponential(1.0 / per_s, steps))
        whose = draw.choice(len(tenants), steps, p=popularity(len(tenants), exponent))
        self._arrivals = [(float(at), tenants[i]) for at, i in zip(times, whose, strict=True)]

    def first(self) -> Iterator[tuple[float, Tenant]]:
        """When the steps arrive that wait for no other, and whose they are."""
        return iter(self._arrivals)

    def next_after(self, tenant: Tenant, now: float) -> float | None:  # noqa: ARG002
        """When a tenant whose step was answered sends another; None: that does not depend on it."""
        return None


class ClosedLoop:
    """Each tenant has `in_flight` steps under way, and thinks for a while before each.

    think_s: of each tenant, the mean of an exponential distribution; 0 keeps it backlogged.
    """

    def __init__(
        self, tenants: Sequence[Tenant], *, think_s: Sequence[float], seed: int, in_flight: int = 1
    ) -> None:
        self._draw = np.random.default_rng([seed, 2])
        self._tenants = tenants
        self._think_s = think_s
        self._in_flight = in_flight

    def first(self) -> Iterator[tuple[float, Tenant]]:
        for tenant in self._tenants:
            for _ in range(self._in_flight):
                yield self.next_after(tenant, 0.0), tenant

    def next_after(self, tenant: Tenant, now: float) -> float:
        mean = self._think_s[tenant.number]
        return now + float(self._draw.exponential(mean)) if mean else now


Arrivals = OpenLoop | ClosedLoop
