"""Who sends kill -9, to whom and when: drawn from a seed, and written down.

What a seed fixes is whom, and how long to wait; what that meets is up to the machine. A kill comes either
soon after the one before, so that it meets a start or a recovery, or once somebody has read a result since:
so that the test goes on and is not one long start.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loractl.tests.crash.crashed_daemon import CrashedDaemon, pick

TARGETS: Mapping[str, int] = {"trainer": 4, "sampler-0": 2, "bridge": 3, "daemon": 3, "all": 2}
_SOON = 0.25  # of the kills
_SOON_S, _LATER_S = 1.0, 1.2
_PATIENCE_S = 60.0
_LOOK_AGAIN_S = 0.02


@dataclass
class Killer:
    """results: how many results clients have read so far. targets: weights by name."""

    daemon: CrashedDaemon
    seed: int
    kills: int
    results: Callable[[], int]
    targets: Mapping[str, int] = field(default_factory=lambda: TARGETS)
    done: int = 0
    failure: str = ""
    timeline: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        return self.done >= self.kills or bool(self.failure)

    def run(self) -> None:
        chance = random.Random(self.seed)
        while not self.over:
            soon = chance.random() < _SOON
            self._wait(chance.uniform(0, _SOON_S if soon else _LATER_S), for_a_result=not soon)
            target = pick(chance, {**self.targets})
            pids = self.daemon.kill(target)
            if pids:
                self.done += 1
                self.note(f"killed {target} {pids} after {self.results()} results")
            if self.daemon.reap():
                self.daemon.start()
                self.note("started the daemon again")

    def note(self, what: str) -> None:
        self.timeline.append(f"{time.monotonic() - self._begun:8.2f} s  {what}")

    def _wait(self, pause_s: float, *, for_a_result: bool) -> None:
        pause, before = threading.Event(), self.results()
        deadline = time.monotonic() + _PATIENCE_S
        while for_a_result and self.results() == before and not self.failure:
            if time.monotonic() > deadline:
                self.failure = f"nobody read a result for {_PATIENCE_S:g} s"
                self.note(self.failure)
            pause.wait(_LOOK_AGAIN_S)
        pause.wait(pause_s)
