"""From a request's arrival to its one outcome: who gets it, when, and who reads the answer.

Knows tickets, actors and places, and nothing of what a request means (that is `broker`). Every method
returns decisions; the pins of requests that ended are left in `unpinned` for the version table.
"""

from collections.abc import Callable, Mapping

from ..bus.codec import encode, peek
from ..bus.config import LimitsConfig, QuotasConfig
from ..bus.errors import ActorUnavailable, LoractlError
from ..bus.failures import failed
from ..bus.ids import ActorId, LaneId, TenantId
from ..bus.messages import ActorRole, Failed, Message, WaitCause
from .actors import Actor, ActorTable, Hold
from .answers import a_bug, delivery, enveloped, loss, notice, still_written_down
from .decisions import ClientId, Decision, Forward, Key, Say
from .journal.records import Past
from .journaling import Journaling
from .ledger import Ended, Ledger, Outcome, Ticket
from .quota_words import held_too_much, quota_reason
from .recovery import Recovery, Step
from .routing import Destination
from .versions import VersionKey
from .waitlist import Waitlist


class Dispatch:
    def __init__(
        self,
        limits: LimitsConfig,
        quotas: QuotasConfig,
        actors: Mapping[ActorId, ActorRole],
        past: Past | None = None,
        *,
        retry_quarantined: bool = False,
    ) -> None:
        self._limits = limits
        self.journaling = Journaling(past, limits)
        self.ledger = Ledger(limits.outcome_bytes, limits.outcome_s)
        self.recovery = Recovery(past, limits, self.ledger.find, retry=retry_quarantined)
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
            return [delivery(client, key, known.outcome)]
        known.waiters[client] = None
        if known.parked and (error := self._never(known)):
            return self._tell_to_leave(known, error)
        return [notice(client, known)] if known.waits_for else []

    def place(self, ticket: Ticket, now: float, *, is_new: bool = True) -> list[Decision]:
        """Hand a request to an actor, or let it wait and say why; a new one too much to wait is refused."""
        try:
            choice = self.actors.choose(ticket.destination)
        except ActorUnavailable as error:
            return self.leave(ticket, error, now)
        if isinstance(choice, Hold):
            return self._hold(ticket, choice.reason, "others", now, is_new=is_new)
        # Were something waiting that this one must not overtake, one of these would hold for it too.
        if reason := quota_reason(self.waitlist, ticket):
            return self._hold(ticket, reason, "quota", now, is_new=is_new)
        parks = is_new and ticket.number and not self.recovery.lets(ticket.adapter)
        if parks and (refusal := self._too_much(ticket)):
            return self.end(ticket, failed(refusal), now)
        return self._hand_over(ticket, choice)

    def follow(self, ticket: Ticket, target: Ticket) -> Decision:
        """Hand a request to whoever holds its target, whatever the tenant's places."""
        assert target.actor is not None
        return self._send(ticket, self.actors[target.actor])

    def pass_on(self, ticket: Ticket, outcome: Outcome) -> list[Decision]:
        """A part of the answer, to everybody who waits for it."""
        return [delivery(client, ticket.key, outcome) for client in ticket.waiters]

    def end(self, ticket: Ticket, outcome: Outcome, now: float, *, keep: bool = True) -> list[Decision]:
        """Answer everybody who waits; those of a durable request once the journal has the answer. What
        may succeed on another try is never kept."""
        if isinstance(outcome, Failed) and outcome.retryable:
            keep = False
        self._stop_waiting(ticket)
        if not ticket.number:
            return [*self._close(ticket, outcome, keep=keep, now=now), *self.let_go(ticket)]
        if ticket.outcome is not None:
            return []
        ticket.outcome, ticket.kept = outcome, keep
        frames = encode(enveloped(ticket.key, outcome)) if isinstance(outcome, Message) else outcome
        is_failure = peek(frames[0], self._limits).kind == Failed.kind
        written = self.journaling.ended(ticket, frames, failed=is_failure, again=not keep)
        return [*self.let_go(ticket), written]

    def give_up(self, ticket: Ticket, outcome: Failed, now: float) -> list[Decision]:
        """Answer a request that the journal never had, and no actor."""
        self.journaling.close(ticket)
        ticket.number = 0
        return self.end(ticket, outcome, now, keep=False)

    def outcome_written(self, ticket: Ticket, now: float) -> list[Decision]:
        """The journal has it: tell."""
        assert ticket.outcome is not None
        self.journaling.close(ticket)
        return self._close(ticket, ticket.outcome, keep=ticket.kept, now=now)

    def leave(self, ticket: Ticket, error: LoractlError, now: float) -> list[Decision]:
        """Tell everybody who waits that it does not run now. A durable request that an actor may have seen stays
        in the journal, and runs when it can; one that nobody has seen never was."""
        if ticket.outcome is not None:
            return []
        if not ticket.number or not ticket.seen:
            return self.end(ticket, failed(error), now, keep=not ticket.number)
        self._stop_waiting(ticket)
        decisions = [*self._tell_to_leave(ticket, error), *self.let_go(ticket)]
        self.recovery.parking.park(ticket)
        return decisions

    def _leave_parked(self, error_for: Callable[[Ticket], LoractlError], now: float) -> list[Decision]:
        decisions: list[Decision] = []
        for ticket in self.recovery.parking.all():
            error = error_for(ticket)
            if ticket.seen:
                decisions += self._tell_to_leave(ticket, error)
            else:
                decisions += self.leave(ticket, error, now)
        return decisions

    def _tell_to_leave(self, ticket: Ticket, error: LoractlError) -> list[Decision]:
        decisions = self.pass_on(ticket, failed(still_written_down(error)))
        ticket.waiters.clear()
        return decisions

    def _stop_waiting(self, ticket: Ticket) -> None:
        if ticket.parked:
            self.recovery.parking.unpark(ticket)
        elif ticket.waits_for and ticket.actor is None:
            self.waitlist.remove(ticket)
        ticket.waits_for = ""

    def _close(self, ticket: Ticket, outcome: Outcome, *, keep: bool, now: float) -> list[Decision]:
        self.ledger.end(ticket, outcome, keep=keep, now=now)
        if ticket.pin is not None:
            self.unpinned.append(ticket.pin)
        return self.pass_on(ticket, outcome)

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
            if ticket.number and not for_good and self.actors[name].phase != "stopping":
                decisions += self.park(ticket)
            else:
                decisions += self.leave(ticket, loss(self.actors[name], ticket), now)
        if for_good and self.actors[name].role == "trainer":
            decisions += self._leave_parked(lambda ticket: loss(self.actors[name], ticket), now)
        return decisions + self.advance_all(now)

    def refuse_waiting(self, error: LoractlError, now: float) -> list[Decision]:
        """End everything that no actor holds yet."""
        decisions: list[Decision] = []
        for ticket in self.waitlist.take_all():
            ticket.waits_for = ""
            decisions += self.leave(ticket, error, now)
        return [*decisions, *self._leave_parked(lambda _: error, now)]

    def refuse_all(self, error: LoractlError, now: float) -> list[Decision]:
        """End everything under way."""
        decisions = self.refuse_waiting(error, now)
        for ticket in self.ledger.under_way():
            decisions += self.leave(ticket, error, now)
        return decisions

    def _advance(self, tenant: TenantId, lane: LaneId | None = None) -> list[Decision]:
        """Hand out what may go now. lane: of which the trainer ended an operation, if it did."""
        decisions: list[Decision] = []
        while ticket := _off_the_list(self._next(tenant, lane)):
            actor = self.actors.choose(ticket.destination)
            assert isinstance(actor, Actor), "it was ready a moment ago"
            decisions += self._hand_over(ticket, actor)
            if ticket.cause == "quota" and ticket.place is not None:
                # It may have to wait for others' turns now, which is no doing of its own.
                decisions += [notice(client, ticket) for client in ticket.waiters]
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

    def _hold(
        self, ticket: Ticket, reason: str, cause: WaitCause, now: float, *, is_new: bool
    ) -> list[Decision]:
        ticket.size_bytes = sum(map(len, ticket.frames))
        if is_new and (refusal := self._too_much(ticket)):
            return self.end(ticket, failed(refusal), now)
        ticket.waits_for, ticket.cause = reason, cause
        self.waitlist.hold(ticket)
        return [notice(client, ticket) for client in ticket.waiters]

    def _too_much(self, ticket: Ticket) -> LoractlError | None:
        parked_bytes = self.recovery.parking.waiting_bytes(ticket.key[0])
        return held_too_much(self.waitlist, ticket, parked_bytes)

    def _hand_over(self, ticket: Ticket, actor: Actor) -> list[Decision]:
        if ticket.number and not self._may_go(ticket):
            return self._recover_first(ticket, actor)
        ticket.counted = True
        self.waitlist.taken(ticket)
        return [self._send(ticket, actor)]

    def _may_go(self, ticket: Ticket) -> bool:
        """Whether the trainer has the adapter as it was; to be deleted it need not."""
        if self.recovery.lets(ticket.adapter):
            return True
        return ticket.deletes is not None and self.recovery.never(ticket.adapter) is not None

    def _recover_first(self, ticket: Ticket, actor: Actor) -> list[Decision]:
        """The trainer has been started since it had this adapter last."""
        if error := self._never(ticket):
            return self.leave(ticket, error, now=0.0)
        begun = self.released(self.recovery.begin(ticket.adapter, now=0.0))
        if self.recovery.lets(ticket.adapter):  # there was nothing to do
            return [*begun, *self._hand_over(ticket, actor)]
        return [*begun, *self.park(ticket)]

    def _never(self, ticket: Ticket) -> LoractlError | None:
        """Why a durable request does not run before the daemon is started again, if so."""
        try:
            self.actors.choose(ticket.destination)
        except ActorUnavailable as error:
            return error
        return self.recovery.never(ticket.adapter) if ticket.deletes is None else None

    def park(self, ticket: Ticket) -> list[Decision]:
        """Let a durable request wait until its adapter is where it was."""
        decisions = self.let_go(ticket)
        ticket.retried = ticket.retried or ticket.sent
        self.recovery.parking.park(ticket)
        ticket.waits_for, ticket.cause = self.recovery.waits(ticket.adapter), "others"
        return [*decisions, *(notice(client, ticket) for client in ticket.waiters)]

    def released(self, step: Step, now: float = 0.0) -> list[Decision]:
        """Carry out what recovery decided."""
        decisions = [*step.decisions]
        for ticket in step.released:
            ticket.waits_for = ""
            try:
                if not ticket.frames:
                    self.journaling.read_again(ticket)
                decisions += self.place(ticket, now, is_new=False)
            except Exception as error:  # noqa: BLE001  # a bug costs one request, never those behind it
                decisions += self._hit_a_bug(ticket, error, now)
        return decisions

    def _hit_a_bug(self, ticket: Ticket, error: Exception, now: float) -> list[Decision]:
        said = Say(
            "released.hit_a_bug", {"kind": ticket.kind, "request_id": ticket.key[1], "error": repr(error)}
        )
        answer = error if isinstance(error, LoractlError) else a_bug()
        return [said, *self.end(ticket, failed(answer), now, keep=False)]

    def _send(self, ticket: Ticket, actor: Actor) -> Decision:
        ticket.actor, ticket.sent = actor.name, True
        actor.holds[ticket.key] = ticket
        frames, ticket.frames = ticket.frames, ()
        return Forward(actor.name, frames)


def _off_the_list(ticket: Ticket | None) -> Ticket | None:
    if ticket is not None:
        ticket.waits_for = ""
    return ticket
