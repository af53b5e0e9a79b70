"""What a program does when it is ended from outside: by Ctrl-C, or by SIGTERM."""

import os
import signal
import threading
from types import FrameType
from typing import Self

_NOTICE = b"\nstopping: waiting for the steps in hand, then saving (Ctrl-C again to stop at once)\n"


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_when_ended() -> None:
    """From here on both raise KeyboardInterrupt, so that what a program opened is closed, such as a daemon of
    its own; also in a program that a script started with `&`, which begins with SIGINT ignored.

    Only the main thread may call this.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)


class StopRequest:
    """Ctrl-C as a wish: while this context is open, `requested` turns True at the first SIGINT or SIGTERM,
    which asks a run to stop in good order; the second one stops it at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    def __enter__(self) -> Self:
        # Only the main thread may have signal handlers; elsewhere nothing is caught.
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._caught) for number in _SIGNALS]
        else:
            self._before = []
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=False):
            signal.signal(number, handler)

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not through the console: the signal may have come in the middle of its work.
        os.write(2, _NOTICE)
