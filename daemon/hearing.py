"""What actors say, and what comes of it: answers to requests, reports, and questions of their own. Pure.

Answers pass through unread, but where the broker must know what is in them.
"""

from collections.abc import Iterable
from dataclasses import replace

from ..bus.codec import Header, decode, encode
from ..bus.config import LimitsConfig
from ..bus.errors import LoractlError
from ..bus.failures import failed
from ..bus.ids import ActorId
from ..bus.messages import (
    ActorReady,
    AdapterCreated,
    AdapterList,
    Done,
    Envelope,
    Failed,
    Heartbeat,
    LaneOpened,
    Message,
    SnapshotTaken,
    VersionReleased,
    VersionServed,
    VersionWritten,
)
from .decisions import Decision, Frames, Heard, Tell
from .dispatch import Dispatch
from .durability import Durability
from .ledger import Ticket
from .publishing import Publishing
from .receipts import Settled

REPORTS = (ActorReady, Heartbeat, SnapshotTaken, VersionServed, VersionReleased)
_DESCRIPTIONS = (AdapterCreated.kind, AdapterList.kind, LaneOpened.kind)


class Hearing:
    def __init__(
        self, limits: LimitsConfig, dispatch: Dispatch, durability: Durability, publishing: Publishing
    ) -> None:
        self._limits = limits
        self._dispatch = dispatch
        self._durability = durability
        self._publishing = publishing

    def answer(
        self, actor: ActorId, header: Header, frames: Frames, now: float, *, draining: bool
    ) -> list[Decision]:
        """An answer, or a part of one, to whoever waits for it. Raises BadFrame."""
        if (step := self._dispatch.recovery.heard(actor, header, frames, now)) is not None:
            return self._dispatch.released(step, now)
        ticket = self._dispatch.ledger.find((header.tenant, header.request))
        if ticket is None or ticket.actor != actor:
            return []  # answered otherwise already, because its actor had died
        if not header.last:
            return self._dispatch.pass_on(ticket, frames)
        if header.kind == Failed.kind:
            return self._failed(ticket, header, frames, now, draining=draining)
        if header.kind == VersionWritten.kind:
            return self._version_written(ticket, frames, now)
        if header.kind in _DESCRIPTIONS:
            frames = self._described(frames)
        deleted = self._publishing.deleted(ticket.deletes) if ticket.deletes is not None else []
        gone = self._durability.gone(ticket, now)
        return [*deleted, *gone, *self._dispatch.end(ticket, frames, now)]

    def _failed(
        self, ticket: Ticket, header: Header, frames: Frames, now: float, *, draining: bool
    ) -> list[Decision]:
        if ticket.number:
            body = self._decoded(frames).body
            assert isinstance(body, Failed)
            if parked := self._durability.answered(ticket, body, draining=draining, now=now):
                return parked
            if self._durability.is_done(ticket, body):
                return self._deleted_before(ticket, now)
        return self._dispatch.end(ticket, frames, now, keep=header.fields.get("retryable") is False)

    def _deleted_before(self, ticket: Ticket, now: float) -> list[Decision]:
        """The first time it was there, and nobody may have heard that it went."""
        decisions: list[Decision] = []
        if ticket.deletes is not None and self._durability.owns(ticket):
            decisions += self._publishing.deleted(ticket.deletes, counted=False)
            decisions += self._durability.gone(ticket, now)
        return [*decisions, *self._dispatch.end(ticket, Done(), now)]

    def _version_written(self, ticket: Ticket, frames: Frames, now: float) -> list[Decision]:
        body = self._decoded(frames).body
        assert isinstance(body, VersionWritten)
        ticket.written_version = True
        told, settled = self._publishing.written(ticket, body.record, now)
        return [*told, *self._dispatch.let_go(ticket), *self.settle(settled, now)]

    def _described(self, frames: Frames) -> Frames:
        """Say of each adapter that an answer describes what only the broker knows."""
        envelope = self._decoded(frames)
        assert isinstance(envelope.body, AdapterCreated | AdapterList | LaneOpened)
        held = self._dispatch.waitlist.waiting_of(envelope.tenant)
        return encode(replace(envelope, body=self._publishing.described(envelope.body, held)))

    def report(self, body: Message, now: float) -> list[Decision]:
        match body:
            case Heartbeat(actor=actor):
                self._dispatch.actors.beat(body, now)
                return [Heard(ActorId(actor), busy_s=body.busy_s, at=body.at)]
            case ActorReady():
                return self._ready(body, now)
            case VersionServed():
                return self.settle(self._publishing.served(body, now), now)
            case VersionReleased():
                return self._publishing.released(body)
            case SnapshotTaken():
                return self._durability.snapshot(body)
            case other:
                raise AssertionError(f"{other.kind} is no report")

    def _ready(self, body: ActorReady, now: float) -> list[Decision]:
        actor = self._dispatch.actors.ready(body, now)
        if actor is None:  # of a process that we ended, or did not start
            return []
        decisions: list[Decision] = [Heard(actor.name, ready=True)]
        if actor.role == "trainer":
            under_way = self._dispatch.ledger.find
            decisions += self._publishing.trainer_ready(body, lambda key: under_way(key) is not None)
            decisions += self._durability.ready(actor.name, now)
        return decisions + self._dispatch.advance_all(now)

    def table_for(self, actor: ActorId, header: Header) -> list[Decision]:
        """A sampler starts or saw a gap: it gets the whole truth, and may hold all of it from now on."""
        known = self._dispatch.actors.get(actor)
        decisions: list[Decision] = []
        if known is not None and known.role == "sampler":
            decisions += self._publishing.table_sent(actor)
        table = self._publishing.versions.table()
        return [*decisions, Tell(actor, Envelope(request=header.request, tenant=header.tenant, body=table))]

    def settle(self, settled: Iterable[Settled], now: float) -> list[Decision]:
        """Answer publishes that need not wait for a sampler any more."""
        decisions: list[Decision] = []
        for one in settled:
            answer = failed(one.answer) if isinstance(one.answer, LoractlError) else one.answer
            decisions += self._dispatch.end(one.ticket, answer, now)
        return decisions

    def _decoded(self, frames: Frames) -> Envelope:
        return decode(frames, self._limits)
