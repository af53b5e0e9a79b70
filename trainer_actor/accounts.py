"""What each adapter and each tenant took of the trainer since it started.

Time is measured by whoever runs the work and handed in. What is charged comes back per tenant, for
`fairness` to take turns by. Pure.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

from ..bus.ids import AdapterId, TenantId
from ..bus.messages import Usage

# Milliseconds of trainer time, per tenant.
Charged = Mapping[TenantId, float]

_FIELDS = tuple(field.name for field in fields(Usage))


class PassShare(NamedTuple):
    """One operation's part in a pass: the positions of it that ran. ended: these were its last."""

    adapter: AdapterId
    tenant: TenantId
    tokens: int
    ended: bool = True


class Accounts:
    def __init__(self) -> None:
        self._adapters: dict[AdapterId, Usage] = {}
        self._tenants: dict[TenantId, Usage] = {}

    def of(self, adapter: AdapterId) -> Usage:
        return self._adapters.get(adapter, Usage())

    def of_tenant(self, tenant: TenantId) -> Usage:
        """With its adapters that are deleted by now; a pass that several of them shared counts once."""
        return self._tenants.get(tenant, Usage())

    def tenants(self) -> Mapping[TenantId, Usage]:
        """All that took something; each as `of_tenant`."""
        return self._tenants

    def forget(self, adapter: AdapterId) -> None:
        """The adapter is gone; what it took stays in its tenant's sum."""
        self._adapters.pop(adapter, None)

    def pass_ran(self, shares: Sequence[PassShare], ms: float) -> Charged:
        """A pass over the base model took ms, which is split by positions."""
        tokens = sum(share.tokens for share in shares)
        shared = len({share.adapter for share in shares}) > 1
        charged: dict[TenantId, float] = defaultdict(float)
        for share in shares:
            part = share.tokens / tokens if tokens else 1 / len(shares)
            took = Usage(trainer_ms=ms * part, tokens=share.tokens, operations=int(share.ended))
            self._add(share.adapter, share.tenant, took)
            charged[share.tenant] += took.trainer_ms
        once = Usage(passes=1, shared_passes=int(shared))
        for adapter in {share.adapter for share in shares}:
            self._adapters[adapter] = _sum(self.of(adapter), once)
        for tenant in charged:
            self._tenants[tenant] = _sum(self.of_tenant(tenant), once)
        return charged

    def stepped(self, adapter: AdapterId, tenant: TenantId, ms: float) -> Charged:
        """An optimizer step took ms: its share of it where several ran at once."""
        return self._add(adapter, tenant, Usage(trainer_ms=ms, operations=1, steps=1))

    def did(self, adapter: AdapterId, tenant: TenantId, ms: float) -> Charged:
        """Any other operation took ms."""
        return self._add(adapter, tenant, Usage(trainer_ms=ms, operations=1))

    def placed(self, adapter: AdapterId, tenant: TenantId, ms: float) -> Charged:
        """Bringing it to the device kept the trainer for ms, with what had to leave for it."""
        return self._add(adapter, tenant, Usage(trainer_ms=ms))

    def moved(self, adapter: AdapterId, tenant: TenantId, size_bytes: int, loaded: bool) -> None:
        """Its state, or a part of it, went to the device (loaded) or away from it."""
        self._add(adapter, tenant, Usage(swaps=int(loaded), swapped_bytes=size_bytes))

    def kept_disk(self, adapter: AdapterId, tenant: TenantId, ms: float) -> None:
        """A job of it kept the disk's thread for ms. Nobody's turn waited for that: none is charged."""
        self._add(adapter, tenant, Usage(disk_ms=ms))

    def _add(self, adapter: AdapterId, tenant: TenantId, took: Usage) -> Charged:
        self._adapters[adapter] = _sum(self.of(adapter), took)
        self._tenants[tenant] = _sum(self.of_tenant(tenant), took)
        return {tenant: took.trainer_ms}


def _sum(first: Usage, second: Usage) -> Usage:
    return Usage(**{name: getattr(first, name) + getattr(second, name) for name in _FIELDS})
