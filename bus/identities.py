"""How an actor is known by its two sockets, and how its own messages are told from answers.

An actor has one socket for its work and one for its heartbeats, so that a busy loop never looks
dead. The work socket's identity is the actor's name, the other one's is the name and `/heartbeat`.
"""

import functools

from .errors import BadFrame
from .ids import ActorId, RequestId, TenantId
from .messages import Envelope, Message

_HEARTBEAT = "/heartbeat"
# Reports, events and the broker's own words to an actor belong to no request and no tenant.
NO_REQUEST = RequestId("")
NO_TENANT = TenantId("")


def work_identity(actor: str) -> bytes:
    return actor.encode("ascii")


def heartbeat_identity(actor: str) -> bytes:
    return work_identity(actor) + _HEARTBEAT.encode("ascii")


@functools.lru_cache(maxsize=256)
def read_identity(identity: bytes) -> ActorId:
    """Which actor a ROUTER's peer is, by either of its sockets.

    Raises:
        BadFrame: the peer chose no identity, or one that cannot be an actor's name.
    """
    try:
        name = identity.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadFrame("a peer without an actor's name") from error
    actor = name.removesuffix(_HEARTBEAT)
    if not actor or not actor.isprintable():
        raise BadFrame("a peer without an actor's name")
    return ActorId(actor)


def unsolicited(body: Message) -> Envelope:
    """The envelope of a message that answers nobody: a report, an event, a DropVersion, a Drain."""
    return Envelope(request=NO_REQUEST, tenant=NO_TENANT, body=body)
