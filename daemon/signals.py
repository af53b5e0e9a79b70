"""Signals as something to poll for: the loop sleeps in its poller, and a signal wakes it.

SIGTERM, SIGINT and SIGHUP ask the daemon to stop; SIGCHLD says that an actor may have ended.
"""

import signal
import socket
from types import FrameType
from typing import Self

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HEARD = (*_STOPS, signal.SIGCHLD)


class Signals:
    """While this context lasts. Only the main thread may enter it.

    woken becomes readable at every signal; stops counts those that ask to stop.
    """

    def __init__(self) -> None:
        self.stops = 0
        self.woken, self._wake = socket.socketpair()
        for end in (self.woken, self._wake):
            end.setblocking(False)

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, _let_it_wake)) for number in _HEARD]
        # The system's handler writes each signal's number here, even in the middle of a poll.
        self._wake_before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wake_before)
        for number, handler in self._before:
            signal.signal(number, handler)
        self.woken.close()
        self._wake.close()

    def take_in(self) -> None:
        """Read which signals came."""
        self.stops += sum(number in _STOPS for number in self.woken.recv(4096))


def _let_it_wake(_number: int, _frame: FrameType | None) -> None:
    """Without a handler in Python nothing is written to the wake-up socket."""
