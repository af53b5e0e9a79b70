"""Messages on their way out, sent at the end of a turn, all at once.

A send that finds zmq's thread asleep costs a wake-up. What is for a client goes through `chaos` first.
"""

import time
from collections.abc import Iterable

import structlog
import zmq

from ..bus.codec import encode
from ..bus.crash_points import crash_point
from ..bus.identities import unsolicited
from ..bus.sockets import Frames, PlainSocket, send
from .chaos import Chaos
from .decisions import Forward, Publish, Relay, Reply, Tell
from .remote_clients import RemoteClients

log = structlog.get_logger()


Outgoing = Forward | Relay | Tell | Reply | Publish


class Outbox:
    """clients, actors, events: the sockets of this machine. remote, chaos: None where there are none."""

    def __init__(
        self,
        clients: PlainSocket,
        actors: PlainSocket,
        events: PlainSocket,
        remote: RemoteClients | None,
        chaos: Chaos | None,
    ) -> None:
        self._clients = clients
        self._actors = actors
        self._events = events
        self._remote = remote
        self._chaos = chaos
        self._waiting: list[tuple[PlainSocket, Frames]] = []

    def put(self, decision: Outgoing) -> None:
        match decision:
            case Forward(actor, frames):
                self._waiting.append((self._actors, [actor.encode(), *frames]))
            case Tell(actor, envelope):
                self._waiting.append((self._actors, [actor.encode(), *encode(envelope)]))
            case Relay(client, frames):
                self._to_client([client, *frames])
            case Reply(client, envelope):
                self._to_client([client, *encode(envelope)])
            case Publish(event):
                self._waiting.append((self._events, encode(unsolicited(event))))

    def put_as_they_are(self, messages: Iterable[Frames]) -> None:
        """To clients, by no more chaos. The first frame of each is whom it is for."""
        self._waiting += [(self._clients, frames) for frames in messages]

    def _to_client(self, frames: Frames) -> None:
        if self._chaos is None:
            self._waiting.append((self._clients, frames))
        else:
            self.put_as_they_are(self._chaos.told(frames, time.monotonic()))

    def send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for socket, frames in waiting:
            self._send(socket, frames)
            if socket is self._actors:
                crash_point("broker.forwarded")
            elif socket is self._clients:
                crash_point("broker.replied")

    def _send(self, socket: PlainSocket, frames: Frames) -> None:
        if self._remote is not None and socket is self._clients and self._remote.is_remote(frames[0]):
            socket, frames = self._remote.socket, self._remote.addressed(frames)
        try:
            send(socket, frames, copy=False)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # The client hung up, or the actor died: its requests are answered when that is noticed.
            log.debug("peer.gone", peer=bytes(frames[0]).hex())
