"""When a dead actor is started again, and when it is given up. Pure: `now` is an argument."""

from dataclasses import dataclass

from ..bus.config import DaemonConfig


@dataclass(slots=True)
class Restarts:
    """One actor's history. in_a_row: deaths since it was last ready."""

    config: DaemonConfig
    total: int = 0
    in_a_row: int = 0

    def ready(self) -> None:
        self.in_a_row = 0

    def died(self, now: float) -> float | None:
        """When to start it again; None once it failed too often in a row and is given up."""
        self.in_a_row += 1
        if self.in_a_row > self.config.restart_limit:
            return None
        self.total += 1
        wait_s: float = self.config.restart_first_s * 2.0 ** (self.in_a_row - 1)
        return now + min(wait_s, self.config.restart_max_s)
