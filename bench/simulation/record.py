"""What happened in a simulation: who waited how long, who was served how much, and what that makes.

Times are seconds of the virtual clock, service is milliseconds of trainer time; only `Cost` holds
measured time. Throughput and service are of the window from the first step sent to the last one.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .tenants import Tenant


@dataclass(slots=True)
class Cost:
    """Measured microseconds of processor time of each turn, or of each message: whatever `over` ends."""

    taken_us: list[float] = field(default_factory=list)
    _open_us: float = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        started = time.process_time()
        yield
        self._open_us += 1e6 * (time.process_time() - started)

    def over(self) -> None:
        self.taken_us.append(self._open_us)
        self._open_us = 0.0

    def mean(self) -> float:
        return statistics.fmean(self.taken_us) if self.taken_us else 0.0

    def p99(self) -> float:
        return percentile(self.taken_us, 99)


@dataclass(slots=True)
class Asked:
    """One operation of a tenant. begun, answered: None until it was."""

    tenant: Tenant
    sent: float
    begun: float | None = None
    answered: float | None = None


@dataclass(slots=True)
class Account:
    """One tenant's. backlogged_s: how long something of it was under way. under_way: operations."""

    tenant: Tenant
    served_ms: float = 0.0
    backlogged_s: float = 0.0
    under_way: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """The sums of a moment."""

    at: float
    positions: int
    served_ms: list[float]
    backlogged_s: list[float]


@dataclass
class Record:
    """Written to by the world and the trainer. answers_too_many: to operations answered before."""

    tenants: Sequence[Tenant]
    asked: dict[int, Asked] = field(default_factory=dict)
    answers_too_many: int = 0
    failures: int = 0
    positions: int = 0
    passes: int = 0
    shared_passes: int = 0
    pieces: int = 0
    turns: int = 0  # of the trainer's loop
    swaps: int = 0
    copied_bytes: int = 0
    disk_bytes: int = 0
    waited_for_copies_s: float = 0.0
    busy_ms: float = 0.0
    alone_ms: float = 0.0
    deciding: Cost = field(default_factory=Cost)
    keeping: Cost = field(default_factory=Cost)
    brokering: Cost = field(default_factory=Cost)
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self._accounts = [Account(each) for each in self.tenants]
        self._opened: _Mark | None = None
        self._closed: _Mark | None = None

    # --- what happens ------------------------------------------------------------------------

    def sent(self, number: int, tenant: Tenant, now: float) -> None:
        if self._opened is None:
            self._opened = self._mark(now)
        self.asked[number] = Asked(tenant, now)
        account = self._accounts[tenant.number]
        if not account.under_way:
            account.since = now
        account.under_way += 1

    def sent_last(self, now: float) -> None:
        """No step comes behind this moment."""
        self._closed = self._closed or self._mark(now)

    def begun(self, number: int, now: float) -> None:
        if self.asked[number].begun is None:
            self.asked[number].begun = now

    def answered(self, number: int, now: float, *, failed: bool) -> None:
        asked = self.asked[number]
        if asked.answered is not None:
            self.answers_too_many += 1
            return
        asked.answered = now
        self.failures += failed
        account = self._accounts[asked.tenant.number]
        account.under_way -= 1
        if not account.under_way:
            account.backlogged_s += now - account.since

    def ran_pass(self, shares: Sequence[tuple[Tenant, int]], took_ms: float, alone_ms: float) -> None:
        """A pass over the base model: whose pieces, positions of each, and what passes of each alone take."""
        total = sum(positions for _, positions in shares)
        self.passes += 1
        self.shared_passes += len({tenant.number for tenant, _ in shares}) > 1
        self.pieces += len(shares)
        self.positions += total
        self.busy_ms += took_ms
        self.alone_ms += alone_ms
        for tenant, positions in shares:
            self._accounts[tenant.number].served_ms += took_ms * positions / total

    def turn_ended(self) -> None:
        self.turns += 1
        self.deciding.over()
        self.keeping.over()

    def ran_step(self, tenant: Tenant, took_ms: float) -> None:
        self.busy_ms += took_ms
        self.alone_ms += took_ms
        self._accounts[tenant.number].served_ms += took_ms

    def waited_for_copies(self, seconds: float) -> None:
        self.waited_for_copies_s += seconds
        self.busy_ms += 1e3 * seconds

    # --- what that makes ---------------------------------------------------------------------

    def unanswered(self) -> int:
        return sum(asked.answered is None for asked in self.asked.values())

    def tokens_per_s(self) -> float:
        """Positions that ran in the window."""
        start, end = self._window()
        return (end.positions - start.positions) / max(end.at - start.at, 1e-9)

    def gain(self) -> float:
        """What all that ran takes alone, without any copies, over what it took: above 1 where sharing passes
        won more than copies cost. Unlike tokens/s, it does not depend on whose operations ran."""
        return self.alone_ms / self.busy_ms if self.busy_ms else 0.0

    def waits_s(self, *, light: bool = False) -> list[float]:
        """From sending to the beginning of the first piece, of every operation that began."""
        return [
            each.begun - each.sent
            for each in self.asked.values()
            if each.begun is not None and (each.tenant.light or not light)
        ]

    def turnarounds_s(self, *, light: bool = False) -> list[float]:
        """From sending to the answer, of every operation."""
        return [
            each.answered - each.sent
            for each in self.asked.values()
            if each.answered is not None and (each.tenant.light or not light)
        ]

    def served_in_window(self) -> dict[int, float]:
        """Trainer milliseconds of each tenant that was backlogged all the time, by its number."""
        start, end = self._window()
        length = end.at - start.at
        return {
            each.number: end.served_ms[each.number] - start.served_ms[each.number]
            for each in self.tenants
            if end.backlogged_s[each.number] - start.backlogged_s[each.number] >= 0.95 * length > 0
        }

    def jain(self) -> float | None:
        """Jain's index over service by weight of backlogged tenants; None where there are none to compare.

        (sum x)^2 / (n * sum x^2): 1 when all got the same, 1/n when one got everything (Jain, Chiu and
        Hawe, DEC-TR-301).
        """
        rates = [ms / self.tenants[number].weight for number, ms in self.served_in_window().items()]
        squares = sum(rate * rate for rate in rates)
        return sum(rates) ** 2 / (len(rates) * squares) if len(rates) > 1 and squares else None

    def _window(self) -> tuple[_Mark, _Mark]:
        end = self._closed or self._mark(self.ended_at)
        return self._opened or end, end

    def _mark(self, now: float) -> _Mark:
        backlogged = [
            each.backlogged_s + (now - each.since if each.under_way else 0.0) for each in self._accounts
        ]
        return _Mark(now, self.positions, [each.served_ms for each in self._accounts], backlogged)


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else 0.0
