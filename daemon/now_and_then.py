"""Things that anybody can bring about as often as they like: a line now and then tells of them. Pure."""

import math
from dataclasses import dataclass

SAY_EVERY_S = 10.0


@dataclass(slots=True)
class NowAndThen:
    _unsaid: int = 0
    _say_at: float = -math.inf

    def happened(self, now: float) -> int:
        """It happened once more. Returns how many times to tell of, this one among them; 0: later."""
        self._unsaid += 1
        if now < self._say_at:
            return 0
        times, self._unsaid, self._say_at = self._unsaid, 0, now + SAY_EVERY_S
        return times
