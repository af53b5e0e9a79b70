"""Publishes that wait until a sampler serves the new version, and what became of each.

One sampler that serves it is enough for the receipt. It fails when every sampler that is not given up
said why it cannot, or when the time is over; the version stays either way. After a crash of the daemon a
sampler may tell of a version before the publish itself has come again: what it said is kept.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bus.errors import PublishFailed
from ..bus.ids import ActorId
from ..bus.messages import Receipt, VersionRecord, VersionServed
from .ledger import Ticket
from .versions import VersionKey


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer to a publish: its receipt, or why there is none."""

    ticket: Ticket
    answer: Receipt | PublishFailed


@dataclass(slots=True)
class _Open:
    ticket: Ticket
    record: VersionRecord
    since: float
    refusals: dict[ActorId, str] = field(default_factory=dict)


# Reports that no publish waited for: of versions that a sampler found when it started, above all.
_REMEMBERED = 10_000


@dataclass(slots=True)
class Receipts:
    """timeout_s: how long a publish waits for a sampler."""

    timeout_s: float
    _open: dict[VersionKey, _Open] = field(default_factory=dict)
    _unasked: "OrderedDict[VersionKey, dict[ActorId, VersionServed]]" = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self, ticket: Ticket, record: VersionRecord, samplers: Mapping[ActorId, bool], now: float
    ) -> list[Settled]:
        """Wait for a sampler. samplers: every configured one, and whether it was given up."""
        if not samplers:
            return [Settled(ticket, _receipt_without_sampler(record))]
        key = VersionKey(record.adapter, record.number)
        self._open[key] = _Open(ticket, record, now)
        settled = self.despair(samplers)
        for report in self._unasked.pop(key, {}).values():
            settled += self.served(report, samplers, now)
        return settled

    def served(self, body: VersionServed, samplers: Mapping[ActorId, bool], now: float) -> list[Settled]:
        key = VersionKey(body.adapter, body.version)
        waiting = self._open.get(key)
        if waiting is None:
            self._remember(key, body)
            return []
        if body.error:
            waiting.refusals[ActorId(body.actor)] = body.error
            return self.despair(samplers)
        del self._open[key]
        return [Settled(waiting.ticket, _receipt(waiting, body, now))]

    def lost(self, sampler: ActorId) -> None:
        """It died: what it served it serves no more."""
        for reports in self._unasked.values():
            reports.pop(sampler, None)

    def despair(self, samplers: Mapping[ActorId, bool]) -> list[Settled]:
        """Give up what no sampler is left for; call it whenever one was given up."""
        hopeful = {name for name, given_up in samplers.items() if not given_up}
        lost = [key for key, waiting in self._open.items() if hopeful <= waiting.refusals.keys()]
        return [self._fail(key, _reasons(self._open[key], samplers)) for key in lost]

    def expire(self, now: float) -> list[Settled]:
        late = [key for key, waiting in self._open.items() if now - waiting.since >= self.timeout_s]
        return [
            self._fail(key, f"none did within {self.timeout_s:g} s{_said(self._open[key])}") for key in late
        ]

    def next_deadline(self) -> float:
        if not self._open:  # asked for at every turn of the loop
            return math.inf
        return min(waiting.since for waiting in self._open.values()) + self.timeout_s

    def _remember(self, key: VersionKey, body: VersionServed) -> None:
        self._unasked.setdefault(key, {})[ActorId(body.actor)] = body
        if len(self._unasked) > _REMEMBERED:
            self._unasked.popitem(last=False)

    def _fail(self, key: VersionKey, why: str) -> Settled:
        waiting = self._open.pop(key)
        record = waiting.record
        text = (
            f"version {record.number} of {record.name!r} is written and kept, but no sampler serves it yet: "
            f"{why}; it can be sampled as soon as one does"
        )
        return Settled(waiting.ticket, PublishFailed(text))


def _reasons(waiting: _Open, samplers: Mapping[ActorId, bool]) -> str:
    gone = [f"{name} was given up" for name, given_up in samplers.items() if given_up]
    return "; ".join([*(f"{name}: {text}" for name, text in waiting.refusals.items()), *gone])


def _said(waiting: _Open) -> str:
    return "".join(f"; {name}: {text}" for name, text in waiting.refusals.items())


def _receipt(waiting: _Open, body: VersionServed, now: float) -> Receipt:
    return Receipt(
        record=waiting.record,
        sampler=body.actor,
        engine=body.engine,
        engine_reason=body.engine_reason,
        modules_bound=body.modules_bound,
        probe_max_abs_diff=body.probe_max_abs_diff,
        waited_ms=(now - waiting.since) * 1000,
    )


def _receipt_without_sampler(record: VersionRecord) -> Receipt:
    return Receipt(
        record=record,
        sampler="",
        engine="",
        engine_reason="this daemon runs without samplers",
        modules_bound=0,
        probe_max_abs_diff=None,
        waited_ms=0.0,
    )
