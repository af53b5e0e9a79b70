"""Which adapter is to be snapshotted next. Pure: no files, and `now` is seconds of a monotonic clock.

What an adapter did since its last snapshot would run again after a crash. It is due once the oldest of that
is `after_s` old, or all of it has `after_bytes`; of those that are due the longest waiting comes first.
An adapter that did nothing is never due. One whose snapshot cannot be written waits by itself, longer each
time; only when the next one's cannot be written either, it is the disk, for which all wait.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ..bus.ids import AdapterId

# After a snapshot that could not be written: a disk that is full stays so for a while.
RETRY_S = 10.0
# After many of one adapter, which are its own trouble.
LONGEST_RETRY_S = 120.0


@dataclass(frozen=True, slots=True)
class Owed:
    """What an adapter did that no snapshot holds. since: when the oldest of it ended; used: the newest."""

    since: float
    used: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Retry:
    """Of an adapter whose last snapshots could not be written. after_s: how long it waits the next time."""

    not_before: float
    after_s: float


class SnapshotPolicy:
    def __init__(self, after_s: float, after_bytes: int) -> None:
        self._after_s = after_s
        self._after_bytes = after_bytes
        # Longest waiting first, so that the next one is found at once among thousands.
        self._owed: dict[AdapterId, Owed] = {}
        self._at_once: dict[AdapterId, None] = {}
        self._unheard: dict[AdapterId, float] = {}
        self._retries: dict[AdapterId, _Retry] = {}
        # Whose snapshots could not be written since the last one that could.
        self._failing: set[AdapterId] = set()
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
        """It could not be written: it is owed as before, and tried again after a while."""
        self._failing.add(adapter)
        retry = self._retries.get(adapter)
        after_s = retry.after_s if retry is not None else RETRY_S
        if len(self._failing) > 1:
            self._not_before = now + RETRY_S
            self._retries[adapter] = _Retry(now + RETRY_S, after_s)
        else:
            self._retries[adapter] = _Retry(now + after_s, min(2 * after_s, LONGEST_RETRY_S))
        if owed is None:
            return
        since = self._owed.get(adapter, Owed(now, owed.used, 0))
        self._owed[adapter] = Owed(owed.since, since.used, owed.size_bytes + since.size_bytes)
        self._owed = dict(sorted(self._owed.items(), key=lambda each: each[1].since))
        if self._owed[adapter].size_bytes >= self._after_bytes:
            self._at_once.setdefault(adapter)

    def told(self, adapter: AdapterId, now: float) -> None:
        """The journal was told of a snapshot. If it does not take it, there has to be another one."""
        self._written(adapter)
        self._unheard.pop(adapter, None)
        self._unheard[adapter] = now

    def kept(self, adapter: AdapterId) -> None:
        """The journal has the adapter's snapshot."""
        self._unheard.pop(adapter, None)

    def gone(self, adapter: AdapterId) -> None:
        """It was deleted, or is what a snapshot says again."""
        self.taken(adapter)
        self._retries.pop(adapter, None)
        self._failing.discard(adapter)

    def next(self, now: float, besides: AdapterId | None = None) -> AdapterId | None:
        """Who is due and waited longest; None when nobody is. besides: who cannot be taken just now."""
        due = self._first(besides)
        return due[1] if due is not None and max(due[0], self._not_before) <= now else None

    def next_due(self, besides: AdapterId | None = None) -> float | None:
        """When `next` has an answer; None while nobody did anything."""
        due = self._first(besides)
        return None if due is None else max(due[0], self._not_before)

    def owing(self) -> Sequence[AdapterId]:
        """All that did something, newest first."""
        return sorted(self._owed, key=lambda adapter: self._owed[adapter].used, reverse=True)

    def _written(self, adapter: AdapterId) -> None:
        """The disk takes snapshots, the adapter's, too."""
        self._retries.pop(adapter, None)
        self._failing.clear()
        self._not_before = 0.0

    def _first(self, besides: AdapterId | None) -> tuple[float, AdapterId] | None:
        found = {each for each in self._retries if each in self._owed or each in self._unheard}
        queues: tuple[Mapping[AdapterId, object], ...] = (self._at_once, self._owed, self._unheard)
        for queue in queues:  # those that are tried again are few
            found |= {*islice((each for each in queue if each not in self._retries and each != besides), 1)}
        return min(((self._due(each), each) for each in found if each != besides), default=None)

    def _due(self, adapter: AdapterId) -> float:
        dues: list[float] = []
        if (owed := self._owed.get(adapter)) is not None:
            dues.append(owed.since if adapter in self._at_once else owed.since + self._after_s)
        if adapter in self._unheard:
            dues.append(self._unheard[adapter] + self._after_s)
        retry = self._retries.get(adapter)
        return max(min(dues), retry.not_before if retry is not None else 0.0)
