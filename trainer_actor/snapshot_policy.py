"""Which adapter is to be snapshotted next. Pure: no files, and `now` is seconds of a monotonic clock.

What an adapter did since its last snapshot would run again after a crash. It is due once the oldest of that
is `after_s` old, or all of it has `after_bytes`; of those that are due the longest waiting comes first.
An adapter that did nothing is never due.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..bus.ids import AdapterId

# After a snapshot that could not be written: a disk that is full stays so for a while.
RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Owed:
    """What an adapter did that no snapshot holds. since: when the oldest of it ended; used: the newest."""

    since: float
    used: float
    size_bytes: int


class SnapshotPolicy:
    def __init__(self, after_s: float, after_bytes: int) -> None:
        self._after_s = after_s
        self._after_bytes = after_bytes
        # Longest waiting first, so that the next one is found at once among thousands.
        self._owed: dict[AdapterId, Owed] = {}
        self._at_once: dict[AdapterId, None] = {}
        self._unheard: dict[AdapterId, float] = {}
        self._not_before = 0.0

    def ran(self, adapter: AdapterId, size_bytes: int, now: float, *, at_once: bool = False) -> None:
        """An operation ended. at_once: nothing before it could run again, so it is due now."""
        owed = self._owed.get(adapter, Owed(now, now, 0))
        self._owed[adapter] = Owed(owed.since, now, owed.size_bytes + size_bytes)
        if at_once or owed.size_bytes + size_bytes >= self._after_bytes:
            self._at_once.setdefault(adapter)

    def taken(self, adapter: AdapterId) -> Owed | None:
        """Its state is being written now: what it owed, for `not_taken`."""
        self._at_once.pop(adapter, None)
        self._unheard.pop(adapter, None)
        return self._owed.pop(adapter, None)

    def not_taken(self, adapter: AdapterId, owed: Owed | None, now: float) -> None:
        """It could not be written: it is owed as before, and nothing is tried for a while."""
        self._not_before = now + RETRY_S
        if owed is None:
            return
        since = self._owed.get(adapter, Owed(now, owed.used, 0))
        self._owed[adapter] = Owed(owed.since, since.used, owed.size_bytes + since.size_bytes)
        self._owed = dict(sorted(self._owed.items(), key=lambda each: each[1].since))
        if self._owed[adapter].size_bytes >= self._after_bytes:
            self._at_once.setdefault(adapter)

    def told(self, adapter: AdapterId, now: float) -> None:
        """The journal was told of a snapshot. If it does not take it, there has to be another one."""
        self._unheard.pop(adapter, None)
        self._unheard[adapter] = now

    def kept(self, adapter: AdapterId) -> None:
        """The journal has the adapter's snapshot."""
        self._unheard.pop(adapter, None)

    def gone(self, adapter: AdapterId) -> None:
        """It was deleted, or is what a snapshot says again."""
        self.taken(adapter)

    def next(self, now: float) -> AdapterId | None:
        """Who is due and waited longest; None when nobody is."""
        due = self._first()
        return due[1] if due is not None and max(due[0], self._not_before) <= now else None

    def next_due(self) -> float | None:
        """When `next` has an answer; None while nobody did anything."""
        due = self._first()
        return None if due is None else max(due[0], self._not_before)

    def owing(self) -> Sequence[AdapterId]:
        """All that did something, newest first."""
        return sorted(self._owed, key=lambda adapter: self._owed[adapter].used, reverse=True)

    def _first(self) -> tuple[float, AdapterId] | None:
        found: list[tuple[float, AdapterId]] = []
        if (heavy := next(iter(self._at_once), None)) is not None:
            found.append((self._owed[heavy].since, heavy))
        if (longest := next(iter(self._owed), None)) is not None:
            found.append((self._owed[longest].since + self._after_s, longest))
        if (unheard := next(iter(self._unheard), None)) is not None:
            found.append((self._unheard[unheard] + self._after_s, unheard))
        return min(found, default=None)
