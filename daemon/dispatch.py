"""From a request's arrival to its one outcome: who gets it, when, and who reads the answer.

Knows tickets, actors and places, and nothing of what a request means (that is `broker`). Every method
returns decisions; the pins of requests that ended are left in `unpinned` for the version table.
"""

from collections.abc import Mapping

from ..bus.config import LimitsConfig, QuotasConfig
from ..bus.errors import ActorRestarting, ActorStopping, ActorUnavailable, LoractlError
from ..bus.failures import failed
from ..bus.ids import ActorId, LaneId, TenantId
from ..bus.messages import ActorRole, Envelope, Failed, Message, WaitCause, Waiting
from .actors import Actor, ActorTable, Hold
from .decisions import ClientId, Decision, Forward, Key, Relay, Reply
from .ledger import Ended, Ledger, Outcome, Ticket
from .quota_words import held_too_much, quota_reason
from .routing import Destination
from .versions import VersionKey
from .waitlist import Waitlist


class Dispatch:
    def __init__(
        self, limits: LimitsConfig, quotas: QuotasConfig, actors: Mapping[ActorId, ActorRole]
    ) -> None:
        self.ledger = Ledger(limits.outcome_bytes, limits.outcome_s)
        self.actors = ActorTable(actors)
        self.waitlist = Waitlist(
            limits.inflight_per_tenant,
            queued_positions=quotas.queued_tokens,
            held_bytes=quotas.held_bytes,
        )
        self.unpinned: list[VersionKey] = []

    def again(self, known: Ticket | Ended, key: Key, client: ClientId) -> list[Decision]:
        """The same request came again: read the first outcome, or wait for it with the others."""
        if isinstance(known, Ended):
            return [_delivery(client, key, known.outcome)]
        known.waiters[client] = None
        return [_notice(client, known)] if known.waits_for else []

    def place(self, ticket: Ticket, now: float) -> list[Decision]:
        """Hand a new request to an actor, or let it wait and say why; one too much to wait is refused."""
        try:
            choice = self.actors.choose(ticket.destination)
        except ActorUnavailable as error:
            return self.end(ticket, failed(error), now)
        if isinstance(choice, Hold):
            return self._hold(ticket, choice.reason, "others", now)
        # Were something waiting that this one must not overtake, one of these would hold for it too.
        if reason := quota_reason(self.waitlist, ticket):
            return self._hold(ticket, reason, "quota", now)
        return [self._hand_over(ticket, choice)]

    def follow(self, ticket: Ticket, target: Ticket) -> Decision:
        """Hand a request to whoever holds its target, whatever the tenant's places."""
        assert target.actor is not None
        return self._send(ticket, self.actors[target.actor])

    def pass_on(self, ticket: Ticket, outcome: Outcome) -> list[Decision]:
        """A part of the answer, to everybody who waits for it."""
        return [_delivery(client, ticket.key, outcome) for client in ticket.waiters]

    def end(self, ticket: Ticket, outcome: Outcome, now: float, *, keep: bool = True) -> list[Decision]:
        """Answer everybody who waits. What may succeed on another try is never kept."""
        if isinstance(outcome, Failed) and outcome.retryable:
            keep = False
        if ticket.waits_for and ticket.actor is None:
            self.waitlist.remove(ticket)
        self.ledger.end(ticket, outcome, keep=keep, now=now)
        if ticket.pin is not None:
            self.unpinned.append(ticket.pin)
        return [*self.pass_on(ticket, outcome), *self.let_go(ticket)]

    def let_go(self, ticket: Ticket) -> list[Decision]:
        """The actor is done with it: its place goes to whoever of its tenant waits."""
        if ticket.actor is not None:
            del self.actors[ticket.actor].holds[ticket.key]
            ticket.actor = None
        if not ticket.counted:
            return []
        ticket.counted = False
        self.waitlist.freed(ticket)
        return self._advance(ticket.key[0], None if ticket.place is None else ticket.place.lane)

    def advance_all(self, now: float) -> list[Decision]:
        """Something changed about the actors: hand out, or end, what no longer has to wait."""
        decisions: list[Decision] = []
        for tenant in self.waitlist.tenants():
            while ticket := _off_the_list(self.waitlist.take(tenant, self._hopeless)):
                decisions += self.place(ticket, now)
            decisions += self._advance(tenant)
        return decisions

    def actor_lost(self, name: ActorId, *, for_good: bool, details: str, now: float) -> list[Decision]:
        """The actor died. What it held is answered; what waits for it stays, or ends with it."""
        held = self.actors.lost(name, for_good=for_good, details=details)
        decisions: list[Decision] = []
        for ticket in held:
            ticket.actor = None
            error = _loss(self.actors[name], ticket)
            decisions += self.end(ticket, failed(error), now)
        return decisions + self.advance_all(now)

    def refuse_waiting(self, error: LoractlError, now: float) -> list[Decision]:
        """End everything that no actor holds yet."""
        decisions: list[Decision] = []
        for ticket in self.waitlist.take_all():
            ticket.waits_for = ""
            decisions += self.end(ticket, failed(error), now)
        return decisions

    def refuse_all(self, error: LoractlError, now: float) -> list[Decision]:
        """End everything under way."""
        decisions = self.refuse_waiting(error, now)
        for ticket in self.ledger.under_way():
            decisions += self.end(ticket, failed(error), now)
        return decisions

    def _advance(self, tenant: TenantId, lane: LaneId | None = None) -> list[Decision]:
        """Hand out what may go now. lane: of which the trainer ended an operation, if it did."""
        decisions: list[Decision] = []
        while ticket := _off_the_list(self._next(tenant, lane)):
            actor = self.actors.choose(ticket.destination)
            assert isinstance(actor, Actor), "it was ready a moment ago"
            decisions.append(self._hand_over(ticket, actor))
            if ticket.cause == "quota" and ticket.place is not None:
                # It may have to wait for others' turns now, which is no doing of its own.
                decisions += [_notice(client, ticket) for client in ticket.waiters]
        return decisions

    def _next(self, tenant: TenantId, lane: LaneId | None) -> Ticket | None:
        if not self.waitlist.full(tenant):
            return self.waitlist.take(tenant, self._ready)
        if lane is None or not self._ready(Destination.TRAINER):
            return None
        return self.waitlist.take_awaited(tenant, lane)

    def _ready(self, destination: Destination) -> bool:
        return not self._hopeless(destination) and isinstance(self.actors.choose(destination), Actor)

    def _hopeless(self, destination: Destination) -> bool:
        return self.actors.given_up(destination)

    def _hold(self, ticket: Ticket, reason: str, cause: WaitCause, now: float) -> list[Decision]:
        ticket.size_bytes = sum(map(len, ticket.frames))
        if refusal := held_too_much(self.waitlist, ticket):
            return self.end(ticket, failed(refusal), now)
        ticket.waits_for, ticket.cause = reason, cause
        self.waitlist.hold(ticket)
        return [_notice(client, ticket) for client in ticket.waiters]

    def _hand_over(self, ticket: Ticket, actor: Actor) -> Decision:
        ticket.counted = True
        self.waitlist.taken(ticket)
        return self._send(ticket, actor)

    def _send(self, ticket: Ticket, actor: Actor) -> Decision:
        ticket.actor = actor.name
        actor.holds[ticket.key] = ticket
        frames, ticket.frames = ticket.frames, ()
        return Forward(actor.name, frames)


def _off_the_list(ticket: Ticket | None) -> Ticket | None:
    if ticket is not None:
        ticket.waits_for = ""
    return ticket


def _loss(actor: Actor, ticket: Ticket) -> LoractlError:
    if actor.phase == "stopping":
        return stopping()
    if actor.phase == "failed":
        return ActorUnavailable(
            f"{actor.name} died while it held this {ticket.kind} and was given up: see its log"
        )
    return ActorRestarting(
        f"{actor.name} died while it held this {ticket.kind}; it is being started again: send the request again"
    )


def stopping() -> ActorStopping:
    return ActorStopping("the daemon is stopping: send the request again when it runs")


def _notice(client: ClientId, ticket: Ticket) -> Decision:
    tenant, request = ticket.key
    waiting = Waiting(reason=ticket.waits_for, routine=not ticket.waits_for, cause=ticket.cause)
    return Reply(client, Envelope(request=request, tenant=tenant, body=waiting, last=False))


def _delivery(client: ClientId, key: Key, outcome: Outcome) -> Decision:
    if not isinstance(outcome, Message):
        return Relay(client, outcome)
    tenant, request = key
    return Reply(client, Envelope(request=request, tenant=tenant, body=outcome))
