"""One end of what connects rank 0 and another rank, for frames; tensors go another way.

It ends with either process, however that ends, and the other one notices at once: also in the midst of work, by
the thread that `watch` starts.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

Out = TypeVar("Out")
In = TypeVar("In")

_LENGTH = struct.Struct("<Q")


class Channel(Generic[Out, In]):
    def __init__(self, link: socket.socket, decoder: "msgspec.msgpack.Decoder[In]") -> None:
        """decoder: of what the other end sends."""
        self._link = link
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = decoder.decode

    def send(self, frame: Out) -> None:
        """Raises OSError: the other end is gone."""
        data = self._encode(frame)
        self._link.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> In:
        """Waits. Raises EOFError, OSError: the other end is gone."""
        return self._decode(self._exactly(*_LENGTH.unpack(self._exactly(_LENGTH.size))))

    def watch(self, gone: Callable[[], None]) -> None:
        """Call it, in a thread of its own, as soon as either end is shut."""

        def wait() -> None:
            poll = select.poll()
            poll.register(self._link.fileno(), 0)  # a hang-up is told unasked
            poll.poll()
            gone()

        threading.Thread(target=wait, name="rank-watch", daemon=True).start()

    def shut(self) -> None:
        """Whoever receives or watches at either end hears of it."""
        with contextlib.suppress(OSError):  # the other end is gone
            self._link.shutdown(socket.SHUT_RDWR)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._link.recv_into(view)
            if not count:
                raise EOFError("the other end is gone")
            view = view[count:]
        return data
