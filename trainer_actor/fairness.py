"""Whose turn it is: deficit round robin over tenants, on measured milliseconds of the trainer.

M. Shreedhar and G. Varghese, Efficient fair queueing using deficit round robin (SIGCOMM 1995), with
three differences. What a turn costs is known only when it has run, so a tenant may go into debt and
then waits until its credit is above zero again. And rounds are counted, not walked: in each round
every tenant earns quantum * weight, which says at once in which round a debt is paid. A debt outlives
its tenant's absence, credit does not: it never exceeds what one round earns. And whoever comes with all
of a round's credit goes before those who took something of theirs, as new flows do in FQ-CoDel (RFC
8290, section 4.2), so that a light tenant never waits for a whole round of heavy ones.

A higher priority goes before a lower one always. Tenants are named here and nothing else is known of
them. Pure; a charge and a look at the first k tenants cost O(log n) each.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..bus.ids import TenantId

# Accounts without debt are forgotten once there are so many, so that past tenants take no memory.
_ACCOUNTS = 100_000


@dataclass(slots=True)
class _Account:
    """credit_ms as it stood in `round`. ready: the round in which it may run. place: rotation among those
    who may run in the same round."""

    credit_ms: float
    round: int
    ready: int = 0
    place: int = 0


class FairTurns:
    """quantum_ms: what a tenant of weight 1 earns in a round."""

    def __init__(
        self,
        *,
        quantum_ms: float,
        weights: Mapping[TenantId, float] | None = None,
        priorities: Mapping[TenantId, float] | None = None,
    ) -> None:
        self._quantum_ms = quantum_ms
        self._weights = weights or {}
        self._priorities = priorities or {}
        self._accounts: dict[TenantId, _Account] = {}
        # (-priority, round in which it may run, place, tenant); entries of an older place are stale.
        self._queue: list[tuple[float, int, int, TenantId]] = []
        self._waiting: set[TenantId] = set()
        self._round = 0
        self._places = 0

    def enter(self, tenant: TenantId) -> None:
        """The tenant has work from now on; entering again changes nothing."""
        if tenant not in self._waiting:
            self._waiting.add(tenant)
            took_nothing = self.credit_ms(tenant) >= self._earned(tenant)
            self._place(tenant, rounds_early=int(took_nothing))

    def first(self, count: int, has_work: Callable[[TenantId], bool]) -> list[TenantId]:
        """Up to `count` tenants that have work, whose turn it is first. Those without leave: their debt
        stays, and they come back with `enter`."""
        found: list[tuple[float, int, int, TenantId]] = []
        while self._queue and len(found) < count:
            entry = heapq.heappop(self._queue)
            tenant = entry[3]
            if self._stale(entry):
                continue
            if has_work(tenant):
                found.append(entry)
            else:
                self._waiting.discard(tenant)
        for entry in found:
            heapq.heappush(self._queue, entry)
        return [tenant for _, _, _, tenant in found]

    def rank(self, tenant: TenantId) -> tuple[float, int, int]:
        """Sorts tenants that have work as `first` does."""
        account = self._account(tenant)
        return -self._priorities.get(tenant, 0.0), account.ready, account.place

    def charge(self, tenant: TenantId, ms: float) -> None:
        """Take what the tenant's work took, and send it to the back of its round."""
        account = self._account(tenant)
        account.credit_ms = self._credit(tenant, account) - ms
        account.round = self._round
        if tenant in self._waiting:
            self._place(tenant)
        self._advance()

    def credit_ms(self, tenant: TenantId) -> float:
        """What the tenant may still take in the present round; below zero it is in debt."""
        return self._credit(tenant, self._account(tenant))

    def _advance(self) -> None:
        """Begin the round in which somebody who waits may run."""
        while self._queue:
            if not self._stale(self._queue[0]):
                self._round = max(self._round, self._queue[0][1])
                return
            heapq.heappop(self._queue)

    def _stale(self, entry: tuple[float, int, int, TenantId]) -> bool:
        _, _, place, tenant = entry
        return tenant not in self._waiting or self._accounts[tenant].place != place

    def _place(self, tenant: TenantId, *, rounds_early: int = 0) -> None:
        """Put it behind all who may run in the same round."""
        account = self._account(tenant)
        self._places += 1
        account.place, account.ready = self._places, self._ready(tenant, account) - rounds_early
        priority = self._priorities.get(tenant, 0.0)
        heapq.heappush(self._queue, (-priority, account.ready, account.place, tenant))

    def _ready(self, tenant: TenantId, account: _Account) -> int:
        """The first round in which the tenant's credit is above zero."""
        credit = self._credit(tenant, account)
        if credit > 0:
            return self._round
        return self._round + math.floor(-credit / self._earned(tenant)) + 1

    def _credit(self, tenant: TenantId, account: _Account) -> float:
        earned = self._earned(tenant)
        return min(account.credit_ms + (self._round - account.round) * earned, earned)

    def _earned(self, tenant: TenantId) -> float:
        return self._quantum_ms * self._weights.get(tenant, 1.0)

    def _account(self, tenant: TenantId) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= _ACCOUNTS:
                self._forget_the_settled()
            account = _Account(self._earned(tenant), self._round)
            self._accounts[tenant] = account
        return account

    def _forget_the_settled(self) -> None:
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if tenant in self._waiting or self._credit(tenant, account) < self._earned(tenant)
        }
