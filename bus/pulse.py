"""Whether an actor gets on: what each line of its work is at, and since when that moved last.

Written where the work is done and read by the heartbeat's thread. A strand has one writer at a time, and
each of its fields is one plain value, so no lock is needed.
"""

import time
from collections.abc import Callable
from typing import NamedTuple


class Busy(NamedTuple):
    """for_s: how long it is at one and the same step. at: with what, in words."""

    for_s: float
    at: str


_IDLE = Busy(0.0, "")


class Strand:
    """One line of work: a loop, a thread, an engine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = ""
        self._since: float | None = None

    def turn(self, at: str | None = None) -> None:
        """It gets on: a step of its work is done, or begins. at: with what from here on; None for the same."""
        if at is not None:
            self._at = at
        self._since = self._clock()

    def rest(self) -> None:
        """It waits for work."""
        self._since = None

    def busy(self) -> Busy:
        since = self._since
        return _IDLE if since is None else Busy(self._clock() - since, self._at)


class Pulse:
    """The strands of one actor. loop: its mailbox's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.loop = Strand(clock)
        self._strands = [self.loop]

    def strand(self) -> Strand:
        """One more line of work, that may stand still while others get on."""
        strand = Strand(self._clock)
        self._strands.append(strand)
        return strand

    def busy(self) -> Busy:
        """Of the strand that has stood still for the longest time."""
        return max((strand.busy() for strand in self._strands), key=lambda busy: busy.for_s)
