"""A plain zmq socket inside an asyncio loop, half the cost of zmq.asyncio's futures.

zmq's descriptor is edge-triggered: it becomes readable once, however many messages wait, and any
call on the socket may swallow the edge. So everything is read after each wake-up and each send.
"""

import asyncio
from collections.abc import Callable
from itertools import islice

from .arrays import Buffer
from .sockets import Frames, PlainSocket, receive_waiting, send

# Then others get their turn.
_MESSAGES_PER_TURN = 32


class LoopSocket:
    """Hands each received message to `deliver`, one call of the loop per message, in order."""

    def __init__(self, socket: PlainSocket, deliver: Callable[[Frames], None]) -> None:
        self._socket = socket
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.FD)
        self._loop.add_reader(self._descriptor, self._drain)
        # What arrived before the reader was there gives no further edge.
        self._draining: asyncio.Handle | None = self._loop.call_soon(self._drain)

    def send(self, frames: list[Buffer]) -> None:
        """Queue a message; never waits, because there is no high-water mark. Long memoryviews are lent until it is
        sent: a copy of megabytes would hold up the loop."""
        send(self._socket, frames, copy=False)
        self._drain_soon()

    def detach(self) -> PlainSocket:
        """Stop reading, and give the socket back to be closed. Once or more often."""
        self._loop.remove_reader(self._descriptor)
        if self._draining is not None:
            self._draining.cancel()
        return self._socket

    def _drain_soon(self) -> None:
        if self._draining is None:
            self._draining = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._draining = None
        count = 0
        for frames in islice(receive_waiting(self._socket), _MESSAGES_PER_TURN):
            # A call of its own: an error in one message's handling leaves the others alone.
            self._loop.call_soon(self._deliver, frames)
            count += 1
        if count == _MESSAGES_PER_TURN:
            self._drain_soon()
