"""The broker's pure core: a request, an answer or a report comes in, decisions come out.

Owns what each kind of message means to the broker; requests that it must understand before they go on
their way are left to `admissions`. Who gets a request, and when, is `dispatch`; which versions there are
is `publishing`. No sockets, no clock: `now` is seconds of a monotonic clock.
Frames are looked into only where the broker must understand them; all others pass through.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ..bus.codec import Header, check_sizes, decode, encode, payload_digest
from ..bus.config import Config
from ..bus.errors import BadFrame, Internal, LoractlError
from ..bus.failures import failed
from ..bus.identities import unsolicited
from ..bus.ids import ActorId
from ..bus.messages import (
    ActorReady,
    ActorRole,
    AdapterCreated,
    AdapterList,
    DaemonStatus,
    DeleteVersion,
    Done,
    Drain,
    Envelope,
    Failed,
    GetVersions,
    Heartbeat,
    LaneOpened,
    Message,
    SnapshotTaken,
    VersionReleased,
    VersionServed,
    VersionWritten,
)
from .admissions import UNDERSTOOD, Admissions
from .answers import stopping
from .decisions import ClientId, Decision, Frames, Heard, Key, Relay, Tell
from .deletions import Deletions
from .dispatch import Dispatch
from .durability import Durability
from .journal.records import Past, Record, VersionDeleted
from .ledger import Ticket
from .publishing import Publishing
from .questions import Questions
from .receipts import Settled
from .routing import DESTINATION_BY_KIND, Destination
from .status import Identity

REPORTS = (ActorReady, Heartbeat, SnapshotTaken, VersionServed, VersionReleased)
_REPORT_KINDS = frozenset(report.kind for report in REPORTS)
_DESCRIPTIONS = (AdapterCreated.kind, AdapterList.kind, LaneOpened.kind)


class Broker:
    def __init__(
        self,
        config: Config,
        actors: Mapping[ActorId, ActorRole],
        identity: Identity,
        past: Past | None = None,
    ) -> None:
        self._config = config
        self._draining = False
        retry = config.journal.retry_quarantined
        self._dispatch = Dispatch(config.limits, config.quotas, actors, past, retry_quarantined=retry)
        self._durability = Durability(self._dispatch, past, self._admit)
        self._publishing = Publishing(config.publish, self._dispatch.actors, past)
        self._admissions = Admissions(self._dispatch, self._publishing)
        self._deletions = Deletions(self._publishing, past)
        self._questions = Questions(config, identity, self._dispatch, self._publishing, past)

    # --- from clients ------------------------------------------------------------------------

    def request(self, client: ClientId, header: Header, frames: Frames, now: float) -> list[Decision]:
        """A client's request.

        Raises:
            LoractlError: it is refused, and nothing of it is kept.
        """
        check_sizes(frames, self._config.limits)
        destination = DESTINATION_BY_KIND.get(header.kind)
        if destination is None:
            raise BadFrame(f"{header.kind[:64]!r} is no request")
        if destination is Destination.BROKER:
            asked = self._decoded(frames)
            if isinstance(asked.body, DeleteVersion):
                return self._deletions.answer(client, asked, asked.body)
            return self._questions.answer(client, asked, now)
        ledger, digest = self._dispatch.ledger, payload_digest(frames)
        key = (header.tenant, header.request)
        known = ledger.known(key, digest)
        if known is not None:
            return self._dispatch.again(known, key, client)
        covered = self._dispatch.journaling.covers(header.kind)
        logged = self._durability.find(key, digest) if covered else None
        if logged is not None and not logged.again:
            return [Relay(client, self._durability.first_outcome(logged))]
        if self._draining:
            raise stopping()
        body = self._decoded(frames).body if header.kind in UNDERSTOOD else None
        ticket = ledger.open(key, header.kind, digest, destination, frames, client)
        try:
            taken = self._durability.take_in(ticket, header, logged, now)
        except LoractlError as error:
            return self.abandon(key, error, now)
        return self._admit(ticket, now, body) if taken is None else taken

    def _admit(self, ticket: Ticket, now: float, body: Message | None = None) -> list[Decision]:
        if ticket.kind not in UNDERSTOOD:
            return self._dispatch.place(ticket, now)
        try:
            body = body or self._decoded(ticket.frames).body
            return self._settled_pins(self._admissions.admit(ticket, body, now))
        except LoractlError as error:
            return self._settled_pins(self._dispatch.end(ticket, failed(error), now))

    def abandon(self, key: Key, error: LoractlError, now: float) -> list[Decision]:
        """Nothing can be done with this request: answer whoever waits for it, and forget it."""
        ticket = self._dispatch.ledger.find(key)
        if ticket is None:
            return []
        return self._settled_pins(self._dispatch.end(ticket, failed(error), now, keep=False))

    # --- from actors -------------------------------------------------------------------------

    def heard(self, actor: ActorId, header: Header, frames: Frames, now: float) -> list[Decision]:
        """Anything that an actor sends: a report, a question of its own, or an answer."""
        if header.kind in _REPORT_KINDS:
            return self._settled_pins(self._report(self._decoded(frames).body, now))
        if header.kind == GetVersions.kind:
            return self._table_for(actor, header)
        try:
            return self._settled_pins(self._answer(actor, header, frames, now))
        except BadFrame as error:
            broken = Internal(f"{actor} answered with a broken message ({error.message}): its log has more")
            return self.abandon((header.tenant, header.request), broken, now)

    # --- from the journal ------------------------------------------------------------------------

    def written(self, record: Record, now: float, *, refused: str = "") -> list[Decision]:
        """A record is durable; or was refused, and why."""
        if isinstance(record, VersionDeleted):
            settled = self._deletions.refused(record, refused) if refused else self._deletions.written(record)
            return self._settled_pins(settled)
        if refused:
            return self._settled_pins(self._durability.refused(record, refused, now))
        return self._settled_pins(self._durability.written(record, now))

    # --- from the supervisor -----------------------------------------------------------------

    def spawned(self, actor: ActorId, *, pid: int, restarts: int) -> None:
        self._dispatch.actors.spawned(actor, pid=pid, restarts=restarts)

    def lost(
        self,
        actor: ActorId,
        *,
        for_good: bool,
        details: str,
        now: float,
        killed: bool = False,
        in_hand: Collection[Key] = (),
    ) -> list[Decision]:
        """An actor's process ended. for_good: it will not be started again. killed: nothing that it did
        itself ended it. in_hand: requests that a trainer was at just then."""
        decisions: list[Decision] = []
        if self._dispatch.actors[actor].role == "trainer":
            # One that was not ready had nothing in hand: what is noted is what the one before it was at.
            was_ready = self._dispatch.actors[actor].phase in ("ready", "stopping")
            decisions += self._durability.lost(in_hand if was_ready else (), killed=killed, now=now)
        decisions += self._dispatch.actor_lost(actor, for_good=for_good, details=details, now=now)
        if self._dispatch.actors[actor].role == "sampler":
            told, settled = self._publishing.sampler_lost(actor)
            decisions += [*told, *self._settle(settled, now)]
        return self._settled_pins(decisions)

    def drain(self, now: float) -> list[Decision]:
        """Take nothing new, end what waits, let the actors finish what they hold."""
        self._draining = True
        told = [Tell(actor.name, unsolicited(Drain())) for actor in self._dispatch.actors.stopping()]
        return self._settled_pins([*told, *self._dispatch.refuse_waiting(stopping(), now)])

    def finish(self, now: float) -> list[Decision]:
        """The actors are gone: nobody is left without an answer."""
        return self._settled_pins(self._dispatch.refuse_all(stopping(), now))

    # --- time --------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Decision]:
        self._dispatch.ledger.forget(now)
        late = self._settle(self._publishing.receipts.expire(now), now)
        return self._settled_pins([*self._durability.due(now), *late])

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity when nothing is due ever."""
        return min(
            self._dispatch.ledger.next_deadline(),
            self._publishing.receipts.next_deadline(),
            self._durability.next_due(),
        )

    def status(self, now: float) -> DaemonStatus:
        return self._questions.status(now)

    # --- answers and reports -----------------------------------------------------------------

    def _answer(self, actor: ActorId, header: Header, frames: Frames, now: float) -> list[Decision]:
        if (step := self._dispatch.recovery.heard(actor, header, frames, now)) is not None:
            return self._dispatch.released(step, now)
        ticket = self._dispatch.ledger.find((header.tenant, header.request))
        if ticket is None or ticket.actor != actor:
            return []  # answered otherwise already, because its actor had died
        if not header.last:
            return self._dispatch.pass_on(ticket, frames)
        if header.kind == Failed.kind:
            return self._failed(ticket, header, frames, now)
        if header.kind == VersionWritten.kind:
            return self._version_written(ticket, frames, now)
        if header.kind in _DESCRIPTIONS:
            frames = self._described(frames)
        deleted = self._publishing.deleted(ticket.deletes) if ticket.deletes is not None else []
        gone = self._durability.gone(ticket, now)
        return [*deleted, *gone, *self._dispatch.end(ticket, frames, now)]

    def _failed(self, ticket: Ticket, header: Header, frames: Frames, now: float) -> list[Decision]:
        if ticket.number:
            body = self._decoded(frames).body
            assert isinstance(body, Failed)
            if parked := self._durability.answered(ticket, body, draining=self._draining, now=now):
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
        return [*told, *self._dispatch.let_go(ticket), *self._settle(settled, now)]

    def _described(self, frames: Frames) -> Frames:
        """Say of each adapter that an answer describes what only the broker knows."""
        envelope = self._decoded(frames)
        assert isinstance(envelope.body, AdapterCreated | AdapterList | LaneOpened)
        held = self._dispatch.waitlist.waiting_of(envelope.tenant)
        return encode(replace(envelope, body=self._publishing.described(envelope.body, held)))

    def _report(self, body: Message, now: float) -> list[Decision]:
        match body:
            case Heartbeat(actor=actor):
                self._dispatch.actors.beat(body)
                return [Heard(ActorId(actor), busy_s=body.busy_s, at=body.at)]
            case ActorReady():
                return self._ready(body, now)
            case VersionServed():
                return self._settle(self._publishing.served(body, now), now)
            case VersionReleased():
                return self._publishing.released(body)
            case SnapshotTaken():
                return self._durability.snapshot(body)
            case other:
                raise AssertionError(f"{other.kind} is no report")

    def _ready(self, body: ActorReady, now: float) -> list[Decision]:
        actor = self._dispatch.actors.ready(body)
        if actor is None:  # of a process that we ended, or did not start
            return []
        decisions: list[Decision] = [Heard(actor.name, ready=True)]
        if actor.role == "trainer":
            decisions += self._publishing.trainer_ready(body)
            decisions += self._durability.ready(actor.name, now)
        return decisions + self._dispatch.advance_all(now)

    def _table_for(self, actor: ActorId, header: Header) -> list[Decision]:
        """A sampler starts or saw a gap: it gets the whole truth, and may hold all of it from now on."""
        known = self._dispatch.actors.get(actor)
        decisions: list[Decision] = []
        if known is not None and known.role == "sampler":
            decisions += self._publishing.table_sent(actor)
        table = self._publishing.versions.table()
        return [*decisions, Tell(actor, Envelope(request=header.request, tenant=header.tenant, body=table))]

    # --- small change ------------------------------------------------------------------------

    def _settle(self, settled: Iterable[Settled], now: float) -> list[Decision]:
        decisions: list[Decision] = []
        for one in settled:
            answer = failed(one.answer) if isinstance(one.answer, LoractlError) else one.answer
            decisions += self._dispatch.end(one.ticket, answer, now)
        return decisions

    def _settled_pins(self, decisions: list[Decision]) -> list[Decision]:
        """Requests that ended needed versions that may go now."""
        unpinned = self._dispatch.unpinned
        while unpinned:
            decisions += self._publishing.told(self._publishing.versions.unpin(unpinned.pop()))
        return decisions

    def _decoded(self, frames: Frames) -> Envelope:
        return decode(frames, self._config.limits)
