"""Ctrl-C as a wish: the first one asks a run to stop in good order, the second one stops it at once."""

import os
import signal
import threading
from types import FrameType
from typing import Self

_NOTICE = b"\nstopping: waiting for the steps in hand, then saving (Ctrl-C again to stop at once)\n"


class StopRequest:
    """While this context is open, `requested` turns True at the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.requested = False
        self._signals = (signal.SIGINT, signal.SIGTERM)

    def __call__(self) -> bool:
        return self.requested

    def __enter__(self) -> Self:
        # Only the main thread may have signal handlers; elsewhere nothing is caught.
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._caught) for number in self._signals]
        else:
            self._before = []
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._signals, self._before, strict=False):
            signal.signal(number, handler)

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not through the console: the signal may have come in the middle of its work.
        os.write(2, _NOTICE)
