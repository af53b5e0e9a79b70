"""Who sends kill -9, to whom and when: drawn from a seed, and written down.

What a seed fixes is whom, and how long to wait; what that meets is up to the machine. A kill comes either
soon after the one before, so that it meets a start or a recovery, or once clients have read a few results
since: so that the test goes on and is not one long start. And every second life of the daemon is told to die at
one of the points where something is about to become durable, or has just been told; or its actors are.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loractl.tests.crash.crashed_daemon import CrashedDaemon, pick

TARGETS: Mapping[str, int] = {"trainer": 4, "sampler-0": 2, "bridge": 3, "daemon": 3, "all": 2}
_SOON_S = 1.0
# Results that are read between two kills, and how long it is then until the next one, at most.
_RESULTS = (1, 1, 5, 30)
_LATER_S = 1.0
POINTS = (
    *("journal.begun", "journal.written", "journal.committed", "journal.told"),
    *("broker.forwarded", "broker.replied", "trainer.replied", "bridge.acknowledged"),
    *("futures.written", "futures.committed"),
    *("file.written", "file.synced", "file.renamed", "snapshot.reported"),
)
# Such a point is passed alive so often, at most.
_PASSED = 60
_ARMED = 0.5  # of the daemon's lives
_PATIENCE_S = 180.0
_LOOK_AGAIN_S = 0.05


@dataclass
class Killer:
    """results: how many results clients have read so far. targets: weights by name. soon: the share of kills
    that come soon after the one before."""

    daemon: CrashedDaemon
    seed: int
    kills: int
    results: Callable[[], int]
    targets: Mapping[str, int] = field(default_factory=lambda: TARGETS)
    soon: float = 0.25
    done: int = 0
    failure: str = ""
    timeline: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)
    _chance: random.Random = field(init=False)
    _armed: str = ""

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    @property
    def over(self) -> bool:
        return self.done >= self.kills or bool(self.failure)

    def run(self) -> None:
        while not self.over:
            soon = self._chance.random() < self.soon
            self._wait_for(0 if soon else self._chance.choice(_RESULTS))
            threading.Event().wait(self._chance.uniform(0, _SOON_S if soon else _LATER_S))
            self._kill(pick(self._chance, {**self.targets}))
        if self._armed:  # nobody would start it again
            self.daemon.kill("daemon")
        self._start_again()

    def _kill(self, target: str) -> None:
        pids = [] if self.failure else self.daemon.kill(target)
        if pids:
            self.done += 1
            self.note(f"killed {target} {pids} after {self.results()} results")
        self._start_again()

    def _start_again(self) -> None:
        """If it has ended, by us or at its point."""
        if not self.daemon.has_ended:
            return
        point = f"{self._chance.choice(POINTS)}:{self._chance.randint(1, _PASSED)}"
        arm = self._chance.random() < _ARMED and "daemon" in self.targets and not self.over
        self._armed = point if arm else ""
        self.daemon.start(crash_at=self._armed)
        self.note(f"started the daemon again {self._armed}")

    def note(self, what: str) -> None:
        self.timeline.append(f"{time.monotonic() - self._begun:8.2f} s  {what}")

    def _wait_for(self, more: int) -> None:
        pause, wanted = threading.Event(), self.results() + more
        deadline = time.monotonic() + _PATIENCE_S
        while self.results() < wanted:
            if time.monotonic() > deadline:
                self.failure = f"clients did not read {more} results in {_PATIENCE_S:g} s"
                self.note(self.failure)
                return
            pause.wait(_LOOK_AGAIN_S)
            self._start_again()
