"""Whose turn it is: deficit round robin over tenants, on measured milliseconds of the trainer.

M. Shreedhar and G. Varghese, Efficient fair queueing using deficit round robin (SIGCOMM 1995), with
three differences. What a turn costs is known only when it has run, so a tenant may go into debt and
then waits until its credit is above zero again. And rounds are counted, not walked: in each round
every tenant earns quantum * weight, which says at once in which round a debt is paid. A debt outlives
its tenant's absence, credit does not: it never exceeds what one round earns. And among those who may
run in a round, whoever would pay for its turn first goes first, as in weighted fair queueing (A. Demers, S.
Keshav and S. Shenker, SIGCOMM 1989), so that a light tenant waits for one turn of a heavy one and not for
a round of them. What a turn will take is expected from the tenant's last ones.

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
# Entries of no use any more that may stay before they are looked for.
_STALE = 1024


_Entry = tuple[float, int, int, TenantId]


@dataclass(slots=True)
class _Account:
    """credit_ms as it stood in `round`. ready: the round in which its debt is paid. paid: in which its next
    turn would be too, if that takes expected_ms. place: rotation among those of equal rounds."""

    credit_ms: float
    round: int
    ready: int = 0
    paid: int = 0
    place: int = 0
    expected_ms: float = 0.0


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
        # (-priority, round, place, tenant), by the round in which the next turn would be paid for, and by
        # that in which debts are; entries of an older place are stale.
        self._queue: list[_Entry] = []
        self._debts: list[_Entry] = []
        self._waiting: set[TenantId] = set()
        self._round = 0
        self._places = 0

    def enter(self, tenant: TenantId, *, expected_ms: float = 0.0) -> None:
        """The tenant has work from now on, whose first turn is expected to take so long; entering again
        changes nothing."""
        if tenant not in self._waiting:
            self._waiting.add(tenant)
            self._account(tenant).expected_ms = expected_ms
            self._place(tenant)

    def first(self, count: int, has_work: Callable[[TenantId], bool]) -> list[TenantId]:
        """Up to `count` tenants that have work, whose turn it is first. Those without leave: their debt
        stays, and they come back with `enter`."""
        found: list[_Entry] = []
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
        return -self.priority(tenant), account.paid, account.place

    def priority(self, tenant: TenantId) -> float:
        return self._priorities.get(tenant, 0.0)

    def charge(self, tenant: TenantId, ms: float) -> None:
        """Take what the tenant's work took, and send it to the back of its round."""
        account = self._account(tenant)
        # Halved, and not forgotten: a step behind a long pass does not make the next pass short.
        account.expected_ms = max(ms, account.expected_ms / 2)
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
        while self._debts:
            if not self._stale(self._debts[0]):
                self._round = max(self._round, self._debts[0][1])
                return
            heapq.heappop(self._debts)

    def _stale(self, entry: _Entry) -> bool:
        _, _, place, tenant = entry
        return tenant not in self._waiting or self._accounts[tenant].place != place

    def _place(self, tenant: TenantId) -> None:
        """Put it behind all of the same round."""
        account = self._account(tenant)
        credit = self._credit(tenant, account)
        if len(self._queue) + len(self._debts) > 4 * len(self._waiting) + _STALE:
            self._drop_the_stale()
        self._places += 1
        account.place = self._places
        account.ready = self._round_of(tenant, credit)
        account.paid = self._round_of(tenant, credit - account.expected_ms)
        priority = self.priority(tenant)
        heapq.heappush(self._queue, (-priority, account.paid, account.place, tenant))
        heapq.heappush(self._debts, (-priority, account.ready, account.place, tenant))

    def _drop_the_stale(self) -> None:
        """Those of lower priorities would stay for as long as somebody of a higher one waits."""
        for entries in (self._queue, self._debts):
            entries[:] = [entry for entry in entries if not self._stale(entry)]
            heapq.heapify(entries)

    def _round_of(self, tenant: TenantId, credit: float) -> int:
        """The first round in which this credit is above zero."""
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
