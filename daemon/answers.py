"""What the broker tells those who wait: answers, notices, and why an actor's end was theirs, too."""

from ..bus.codec import Header
from ..bus.errors import (
    ActorRestarting,
    ActorStopping,
    ActorUnavailable,
    Internal,
    LoractlError,
    RecoveryFailed,
)
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


def still_written_down(error: LoractlError) -> LoractlError:
    """To who asked for what an actor may have seen already, so that it cannot be taken back."""
    return type(error)(
        f"{error.message} (this request stays written down and runs as soon as it can: ask for its outcome under "
        "the same id, for under another one it would run twice)"
    )


def a_bug() -> Internal:
    return Internal("loractl has a bug here; the daemon's log has the details")


def left_alone() -> RecoveryFailed:
    return RecoveryFailed(
        "the trainer died again and again while it brought this adapter back, so it is left alone: load one of its "
        "checkpoints into another adapter, or delete it; once the cause is mended, a daemon that is started with "
        "--config journal.retry_quarantined=true tries it again"
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
