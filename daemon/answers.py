"""What the broker tells those who wait: answers, notices, and why an actor's end was theirs, too."""

from ..bus.codec import Header
from ..bus.errors import ActorRestarting, ActorStopping, ActorUnavailable, LoractlError, RecoveryFailed
from ..bus.failures import failed
from ..bus.messages import Envelope, Message, Waiting
from .actors import Actor
from .decisions import ClientId, Decision, Key, Relay, Reply
from .ledger import Outcome, Ticket


def loss(actor: Actor, ticket: Ticket) -> LoractlError:
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


def recovery_failed(reason: str) -> RecoveryFailed:
    return RecoveryFailed(
        f"after a restart this adapter could not be brought back to where it was ({reason}): "
        "load one of its checkpoints into another adapter, or restart the daemon to try again"
    )


def notice(client: ClientId, ticket: Ticket) -> Decision:
    tenant, request = ticket.key
    waiting = Waiting(reason=ticket.waits_for, routine=not ticket.waits_for, cause=ticket.cause)
    return Reply(client, Envelope(request=request, tenant=tenant, body=waiting, last=False))


def turned_away(client: ClientId, header: Header, error: LoractlError) -> Decision:
    """To a request of which nothing is kept."""
    return Reply(client, Envelope(request=header.request, tenant=header.tenant, body=failed(error)))


def delivery(client: ClientId, key: Key, outcome: Outcome) -> Decision:
    if not isinstance(outcome, Message):
        return Relay(client, outcome)
    return Reply(client, enveloped(key, outcome))


def enveloped(key: Key, outcome: Message) -> Envelope:
    tenant, request = key
    return Envelope(request=request, tenant=tenant, body=outcome)
