"""Versions, receipts and who serves what, as the broker's decisions.

Joins the version table (what exists) with the receipts (who waits for it) and turns their changes into
events and words to the trainer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from ..bus.config import PublishConfig
from ..bus.identities import unsolicited
from ..bus.ids import ActorId, AdapterId, RequestId, TenantId
from ..bus.messages import (
    ActorReady,
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    DropVersion,
    Envelope,
    LaneOpened,
    Message,
    VersionRecord,
    VersionReleased,
    VersionServed,
)
from .actors import ActorTable
from .decisions import Decision, Key, Publish, Tell, WriteDown
from .journal.records import Numbered, Past
from .ledger import Ticket
from .receipts import Receipts, Settled
from .routing import Destination
from .versions import Change, Drop, VersionKey, Versions

# Operations that wait in the broker, per adapter.
_Held = Mapping[AdapterId, Sequence[Ticket]]


class Publishing:
    """adapters: how many the trainer has. past: where the numbers of events go on; None: at 1."""

    def __init__(self, config: PublishConfig, actors: ActorTable, past: Past | None = None) -> None:
        self._actors = actors
        self._durable = past is not None
        last_event = past.last_event() if past is not None else 0
        self.versions = Versions(keep=config.keep_versions, last_event=last_event)
        self.receipts = Receipts(config.receipt_timeout_s)
        self.adapters = 0
        self._served_by: dict[AdapterId, str] = {}

    def trainer_ready(self, body: ActorReady, is_under_way: Callable[[Key], bool]) -> list[Decision]:
        """is_under_way: whether a request is."""
        self.adapters = body.adapters

        def is_awaited(record: VersionRecord) -> bool:
            return is_under_way((record.tenant, RequestId(record.request)))

        return self.told(self.versions.rebuild(body.versions, is_awaited))

    def written(
        self, ticket: Ticket, record: VersionRecord, now: float
    ) -> tuple[list[Decision], list[Settled]]:
        """A version was published: announce it and keep its publish waiting for a sampler."""
        changes = self.versions.written(record)
        ticket.pin = VersionKey(record.adapter, record.number)
        self.versions.pin(ticket.pin)
        return self.told(changes), self.receipts.open(ticket, record, self._samplers(), now)

    def deleted(self, adapter: AdapterId, *, counted: bool = True) -> list[Decision]:
        """counted: the trainer that told how many adapters there are counted this one."""
        self.adapters -= counted
        self._served_by.pop(adapter, None)
        return self.told(self.versions.deleted(adapter))

    def served(self, body: VersionServed, now: float) -> list[Settled]:
        if not body.error:
            self._served_by[body.adapter] = f"{body.engine}: {body.engine_reason}".removesuffix(": ")
        return self.receipts.served(body, self._samplers(), now)

    def delete_version(self, tenant: TenantId, key: VersionKey) -> list[Decision]:
        return self.told(self.versions.delete(tenant, key))

    def table_sent(self, sampler: ActorId) -> list[Decision]:
        return self.told(self.versions.table_sent(sampler))

    def released(self, body: VersionReleased) -> list[Decision]:
        return self.told(self.versions.released(ActorId(body.actor), VersionKey(body.adapter, body.version)))

    def sampler_lost(self, sampler: ActorId) -> tuple[list[Decision], list[Settled]]:
        self.receipts.lost(sampler)
        return self.told(self.versions.sampler_lost(sampler)), self.receipts.despair(self._samplers())

    def described(self, body: AdapterCreated | AdapterList | LaneOpened, held: _Held) -> Message:
        """Only the broker knows which engine serves an adapter, which version is the newest, and what it
        holds back itself."""
        match body:
            case AdapterCreated(details=details):
                self.adapters += 1
                return replace(body, details=self._completed(details, held))
            case LaneOpened(details=details):
                return replace(body, details=self._completed(details, held))
            case AdapterList(adapters=adapters):
                return replace(body, adapters=tuple(self._completed(each, held) for each in adapters))
            case _:
                assert_never(body)

    def _completed(self, details: AdapterDetails, held: _Held) -> AdapterDetails:
        adapter = details.adapter
        if here := held.get(adapter):
            details = replace(
                details,
                phase="running",
                queued=details.queued + len(here),
                waits_for=details.waits_for or here[0].waits_for,
            )
        served_by = self._served_by.get(adapter, "")
        return replace(details, served_by=served_by, version=self.versions.newest(adapter))

    def told(self, changes: Iterable[Change]) -> list[Decision]:
        """Events go to every subscriber, and their numbers into the journal; drops go to the trainer, or,
        while none is ready, nowhere: it brings the directory again when it is, and `Versions.rebuild` says
        drop once more."""
        trainer = self._ready_trainer()
        decisions: list[Decision] = []
        last_event = 0
        for change in changes:
            if not isinstance(change, Drop):
                decisions.append(Publish(change))
                last_event = change.number
            elif trainer is not None:
                decisions.append(Tell(trainer, _drop(change.version)))
        if last_event and self._durable:
            decisions.append(WriteDown(Numbered(last_event=last_event)))
        return decisions

    def _ready_trainer(self) -> ActorId | None:
        return next((a.name for a in self._actors if a.role == "trainer" and a.phase == "ready"), None)

    def _samplers(self) -> dict[ActorId, bool]:
        """Every configured sampler, and whether it was given up."""
        return {a.name: a.phase == "failed" for a in self._actors.of(Destination.SAMPLER)}


def _drop(version: VersionKey) -> Envelope:
    return unsolicited(DropVersion(adapter=version.adapter, version=version.number))
