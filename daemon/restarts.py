"""When an actor counts as hung, when a dead one is started again, and when it is given up.

Pure: `now` is an argument, seconds of any one clock.
"""

import math
from dataclasses import dataclass

from ..bus.config import DaemonConfig


@dataclass(slots=True)
class Lifeline:
    """One actor's history.

    restarts: how often it was started again. in_a_row: deaths since it last ran well, which is
    longer than the longest pause between two starts; so one that dies soon after each READY is
    given up as well.
    """

    config: DaemonConfig
    restarts: int = 0
    in_a_row: int = 0
    _started: float = 0.0
    _heard: float = 0.0
    _ready: float | None = None
    # Said by a heartbeat: for how long the actor gets no further, if that is too long, and at what.
    _stuck_s: float = 0.0
    _stuck_at: str = ""
    _beats_stuck: int = 0

    @property
    def is_ready(self) -> bool:
        return self._ready is not None

    def is_steady(self, now: float) -> bool:
        """Whether it has run well, so that what went before is forgotten."""
        return self._ready is not None and now - self._ready > self.config.restart_max_s

    def started(self, now: float) -> None:
        self._started, self._ready, self._beats_stuck = now, None, 0

    def ready(self, now: float) -> None:
        self._heard = now
        if self._ready is None:
            self._ready = now

    def heard(self, now: float, *, busy_s: float = 0.0, at: str = "") -> None:
        """A heartbeat. While an actor loads it proves nothing: only READY does."""
        self._heard = now
        if 0.0 < self.config.stuck_s <= busy_s:
            self._stuck_s, self._stuck_at = busy_s, at
            self._beats_stuck += 1
        else:
            self._beats_stuck = 0

    def overdue(self, now: float) -> str | None:
        """Why it counts as hung, or None."""
        if now < self.next_deadline():
            return None
        if self._ready is None:
            return f"was not ready after {self.config.ready_timeout_s:g} s"
        if self._stuck:
            return f"got no further for {self._stuck_s:.0f} s with {self._stuck_at or 'what it was at'}"
        return f"sent no heartbeat for {self.config.heartbeat_timeout_s:g} s"

    def next_deadline(self) -> float:
        """When it will be overdue if nothing is heard."""
        if self._ready is None:
            return self._started + self.config.ready_timeout_s
        return self._heard if self._stuck else self._heard + self.config.heartbeat_timeout_s

    @property
    def _stuck(self) -> bool:
        """Told twice: one that slept with its whole machine says it once, and then goes on."""
        return self._beats_stuck > 1

    def died(self, now: float, *, hopeless: bool = False) -> float:
        """When to start it again; infinity when it is given up. hopeless: it said that trying again
        changes nothing."""
        if self.is_steady(now):
            self.in_a_row = 0
        self.in_a_row += 1
        self._ready = None
        if hopeless or self.in_a_row >= self.config.restart_limit:
            return math.inf
        self.restarts += 1
        pause_s: float = self.config.restart_first_s * 2.0 ** (self.in_a_row - 1)
        return now + min(pause_s, self.config.restart_max_s)
