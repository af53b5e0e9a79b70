"""Which adapters the trainer died of while it brought them back, and which are left alone for that. Pure.

What runs again when the trainer starts would kill every trainer, and at last everybody's. So crashes are
weighed per adapter, over restarts of the daemon too; one that is brought back whole is cleared.
"""

from collections.abc import Iterable, Mapping

from ..bus.ids import AdapterId
from .decisions import Decision, Say, WriteDown
from .journal.records import Harmed

# From so much weight on what was in hand when the trainer died is not tried again. Who ends a process from
# outside says little about what it did: two crashes of its own count as much as four of these.
QUARANTINE = 4
CRASH, KILL = 2, 1


class Harm:
    """weights: as the journal has them. retry: try those that are quarantined once more."""

    def __init__(self, weights: Mapping[AdapterId, int], *, retry: bool) -> None:
        most = QUARANTINE - 1 if retry else QUARANTINE
        self._weights = {adapter: min(weight, most) for adapter, weight in weights.items()}

    def quarantined(self, adapter: AdapterId) -> bool:
        return self._weights.get(adapter, 0) >= QUARANTINE

    def died(self, adapters: Iterable[AdapterId], weight: int) -> list[Decision]:
        """The trainer had these in hand when it died."""
        decisions: list[Decision] = []
        for adapter in dict.fromkeys(adapters):
            self._weights[adapter] = self._weights.get(adapter, 0) + weight
            decisions.append(WriteDown(self.record(adapter)))
            if self.quarantined(adapter):
                decisions.append(Say("adapter.quarantined", {"adapter": adapter}))
        return decisions

    def brought_back(self, adapter: AdapterId) -> list[Decision]:
        cleared = self._weights.pop(adapter, 0)
        return [WriteDown(self.record(adapter))] if cleared else []

    def record(self, adapter: AdapterId) -> Harmed:
        """How it stands now."""
        return Harmed(adapter=adapter, weight=self._weights.get(adapter, 0))

    def gone(self, adapter: AdapterId) -> None:
        self._weights.pop(adapter, None)
