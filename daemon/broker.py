"""The broker's pure core: a request, an answer or a report comes in, decisions come out.

Owns what each kind of request means to the broker; those that it must understand before they go on
their way are left to `admissions`, and what actors say to `hearing`. Who gets a request, and when, is
`dispatch`; which versions there are is `publishing`. No sockets, no clock: `now` is seconds of a monotonic clock.
Frames are looked into only where the broker must understand them; all others pass through.
"""

from collections.abc import Collection, Mapping

from ..bus.codec import Header, check_sizes, decode, payload_digest
from ..bus.config import Config
from ..bus.errors import BadFrame, Internal, LoractlError
from ..bus.failures import failed
from ..bus.identities import unsolicited
from ..bus.ids import ActorId
from ..bus.messages import (
    ActorRole,
    DaemonStatus,
    DeleteVersion,
    Drain,
    Envelope,
    GetVersions,
    Message,
)
from .admissions import UNDERSTOOD, Admissions
from .answers import stopping
from .decisions import ClientId, Decision, Frames, Key, Relay, Tell
from .deletions import Deletions
from .dispatch import Dispatch
from .durability import Durability
from .hearing import REPORTS, Hearing
from .journal.records import Past, Record, VersionDeleted
from .ledger import Ticket
from .publishing import Publishing
from .questions import Questions
from .routing import DESTINATION_BY_KIND, Destination
from .status import Identity

_REPORT_KINDS = frozenset(report.kind for report in REPORTS)


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
        self._hearing = Hearing(config.limits, self._dispatch, self._durability, self._publishing)
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
            taken = self._durability.take_in(ticket, header, logged)
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
            return self._settled_pins(self._hearing.report(self._decoded(frames).body, now))
        if header.kind == GetVersions.kind:
            return self._hearing.table_for(actor, header)
        try:
            answered = self._hearing.answer(actor, header, frames, now, draining=self._draining)
            return self._settled_pins(answered)
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
            decisions += [*told, *self._hearing.settle(settled, now)]
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
        late = self._hearing.settle(self._publishing.receipts.expire(now), now)
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

    # --- small change ------------------------------------------------------------------------

    def _settled_pins(self, decisions: list[Decision]) -> list[Decision]:
        """Requests that ended needed versions that may go now."""
        unpinned = self._dispatch.unpinned
        while unpinned:
            decisions += self._publishing.told(self._publishing.versions.unpin(unpinned.pop()))
        return decisions

    def _decoded(self, frames: Frames) -> Envelope:
        return decode(frames, self._config.limits)
