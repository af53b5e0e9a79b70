"""Adapters that could not be brought back for now, as on a full disk, and when each is tried again. Pure."""

import math
from collections import Counter
from dataclasses import dataclass, field

from ..bus.errors import ActorRestarting, ActorStopping, AnotherBase, OutOfSlots
from ..bus.ids import AdapterId
from ..bus.messages import Failed

# Answers of a trainer that leaves: the operation did not run, and will.
PARTING = frozenset({ActorStopping.code, ActorRestarting.code})
_FIRST_S, _LONGEST_S = 1.0, 30.0


def may_pass(failure: Failed) -> bool:
    """Whether it says nothing about the adapter: a full disk, no room."""
    return failure.retryable or failure.fault == "server" or failure.code == OutOfSlots.code


@dataclass(slots=True)
class _Pause:
    """code: of the error that reason tells of. over: the pause, because its end was reached; what it knows
    counts for the next one."""

    until: float
    length_s: float
    reason: str
    code: str
    over: bool = False


@dataclass(slots=True)
class Pauses:
    """elsewhere: adapters of another base model, and what to do about it: also while no trainer is there."""

    elsewhere: dict[AdapterId, str] = field(default_factory=dict)
    _pauses: dict[AdapterId, _Pause] = field(default_factory=dict)

    def begin(self, adapter: AdapterId, reason: str, code: str, now: float) -> None:
        """Each pause of an adapter is twice as long as the one before."""
        before = self._pauses.get(adapter)
        length_s = min(2 * before.length_s, _LONGEST_S) if before is not None else _FIRST_S
        self._pauses[adapter] = _Pause(now + length_s, length_s, reason, code)
        if code == AnotherBase.code:
            self.elsewhere[adapter] = reason

    def reason(self, adapter: AdapterId) -> str:
        """Why the adapter could not be brought back; "" where nothing stood in the way."""
        pause = self._pauses.get(adapter)
        return pause.reason if pause is not None else ""

    def codes(self) -> Counter[str]:
        """How many could not be brought back, by what stood in the way."""
        return Counter(pause.code for pause in self._pauses.values())

    def lasts(self, adapter: AdapterId) -> bool:
        pause = self._pauses.get(adapter)
        return pause is not None and not pause.over

    def take_over(self, now: float) -> list[AdapterId]:
        """Those whose pause is over now."""
        over = [adapter for adapter, each in self._pauses.items() if not each.over and each.until <= now]
        for adapter in over:
            self._pauses[adapter].over = True
        return over

    def end(self, adapter: AdapterId) -> None:
        """It is brought back, or will never be."""
        self._pauses.pop(adapter, None)
        self.elsewhere.pop(adapter, None)

    def clear(self) -> None:
        """The trainer is gone. Which adapters are elsewhere stays known."""
        self._pauses.clear()

    def next_due(self) -> float:
        if not self._pauses:  # the usual case, after every turn
            return math.inf
        return min((each.until for each in self._pauses.values() if not each.over), default=math.inf)
