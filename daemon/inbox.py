"""Messages of clients on their way in: from the socket of this machine and over tcp, by way of `chaos`.

Owns no socket of its own. What they mean, and who answers them, is the loop's.
"""

import time
from collections.abc import Iterator
from itertools import islice

from ..bus.errors import LoractlError
from ..bus.sockets import Frames, PlainSocket, receive_waiting
from .chaos import Chaos
from .remote_clients import RemoteClients

# One side's flood never keeps the other side waiting for longer than this many messages.
MESSAGES_PER_TURN = 256

# Its first frame is the client's identity. And why it is refused, if it is.
Arrived = tuple[Frames, LoractlError | None]


class Inbox:
    """clients: the socket of this machine. remote, chaos: None where there are none."""

    def __init__(self, clients: PlainSocket, remote: RemoteClients | None, chaos: Chaos | None) -> None:
        self._clients = clients
        self._remote = remote
        self._chaos = chaos
        self._remote_sources = remote.sources if remote is not None else ()
        self.sources = (clients, *self._remote_sources)

    def take(self, source: object) -> Iterator[Arrived]:
        """What waits at one of the sources, as it came, or as chaos has it come."""
        if source in self._remote_sources:
            assert self._remote is not None
            self._remote.answer_zap()
            arrived = self._remote.receive()
        else:
            arrived = ((frames, None) for frames in receive_waiting(self._clients))
        for frames, refusal in islice(arrived, MESSAGES_PER_TURN):
            if refusal is not None or self._chaos is None:
                yield frames, refusal
            else:
                for each in self._chaos.asked(frames, time.monotonic()):
                    yield each, None
