"""The journal's housekeeping, one small step at a time, between commits.

In order of urgency: the log is copied into the file; frames of deleted adapters go; history that is too
old or too large goes (`retention` judges); then the file gives pages back to the disk.
"""

import time
from collections.abc import Callable, Set
from typing import Any, NamedTuple

from ...bus.ids import AdapterId, LaneId
from ...bus.settings import JournalConfig
from .retention import Entry, Needed, Verdict, Want, did_something, judge, needed_from
from .store import Store

# Of a step: so many requests are looked at, and frames of so many bytes go.
_REQUESTS = 64
_FRAME_BYTES = 2**20
_PAGES = 256
# The log is copied once about so many bytes went into it; each record costs about so many beside its frames.
_LOG_BYTES = 8 * 2**20
_RECORD_BYTES = 2 * 4096
# Free pages are used again: they are given back only where they are many.
_FREE_PAGES, _FREE_SHARE = 1024, 0.25
# When there is nothing to do, look again after. After a step, the commits have nine times what it took; only
# as much where the journal grows faster than it is cut.
_IDLE_S = 10.0
_REST, _SHORT_REST, _MUCH_TOO_MUCH = 9.0, 1.0, 64 * 2**20

_ENTRIES = (
    "SELECT number, kind, requests.adapter, lane, seq, ord, again, came, size, requests.frames IS NOT NULL"
    " FROM requests LEFT JOIN outcomes USING (number)"
)


class _Past(NamedTuple):
    """needed: for recovery, should the newest snapshot be damaged; with every snapshot it gets less. opened:
    lanes of which the journal has the opening."""

    needed: Needed
    opened: Set[LaneId]


class Compaction:
    """wall: seconds since 1970, looked at once. clock: of this process."""

    def __init__(
        self,
        store: Store,
        config: JournalConfig,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._tables = store.tables
        self._config = config
        self._clock = clock
        # What is too old is decided by time that passed in service: a clock that jumps ahead deletes nothing.
        newest = self._tables.rows("SELECT came FROM requests ORDER BY number DESC LIMIT 1")
        self._began_unix_s = min(wall(), *newest[0]) if newest else wall()
        self._began = clock()
        self._logged_bytes = _LOG_BYTES  # whatever the last process left in it
        # What is looked for on the way through the requests, and how far it is; when to set out again.
        self._walk: Want | None = None
        self._from = 0
        self._stripped_to = 0
        self._walk_at = 0.0
        self._pasts: dict[AdapterId, _Past] = {}
        self._next_at = 0.0

    @property
    def next_at(self) -> float:
        """When there is something to do."""
        return 0.0 if self._logged_bytes >= _LOG_BYTES else self._next_at

    def committed(self, records: int, size_bytes: int) -> None:
        """So much went into the log."""
        self._logged_bytes += size_bytes + records * _RECORD_BYTES

    def put_off(self, pause_s: float) -> None:
        """It could not be done."""
        self._logged_bytes = 0
        self._next_at = self._clock() + pause_s

    def step(self) -> bool:
        """Do a little, and say when to come again (`next_at`); False when there was nothing to do.

        Raises:
            StorageFailed: it could not be done; nothing is lost.
        """
        if self._copy_log(_LOG_BYTES):
            return True
        began = self._clock()
        busy = self._bury() or self._forget() or self._give_back() or self._copy_log(1)
        now = self._clock()
        self._next_at = now + (self._rest() * (now - began) if busy else _IDLE_S)
        return busy

    def _rest(self) -> float:
        """How long commits have the thread after a step, in its own length."""
        return _SHORT_REST if self._excess_bytes() > _MUCH_TOO_MUCH else _REST

    def _copy_log(self, least_bytes: int) -> bool:
        if self._logged_bytes < least_bytes:
            return False
        # Readers never hold it up for long, and what they do hold up is copied the next time.
        self._tables.rows("PRAGMA wal_checkpoint(PASSIVE)")
        self._logged_bytes = 0
        return True

    # --- deleted adapters ------------------------------------------------------------------------

    def _bury(self) -> bool:
        """Take some requests from an adapter that is gone: they are outcomes now, and nothing else."""
        return any(
            self._bury_some_of(adapter) for (adapter,) in self._tables.rows("SELECT adapter FROM gone")
        )

    def _bury_some_of(self, adapter: str) -> bool:
        rows = self._tables.rows(
            "SELECT number, size, again FROM outcomes o JOIN requests USING (number) WHERE o.adapter = ? LIMIT ?",
            adapter,
            _REQUESTS,
        )
        rows = _within(rows, size=1, at_once=_FRAME_BYTES)
        with self._tables.transaction():
            # What would run again if it were sent again cannot do that without its frames.
            self._store.delete([number for number, _, again in rows if again])
            self._store.strip([number for number, _, again in rows if not again])
            for number, _, _ in rows:
                for table in ("requests", "outcomes"):
                    self._tables.run(f"UPDATE {table} SET adapter = '' WHERE number = ?", number)  # noqa: S608
            if not self._tables.rows("SELECT 1 FROM requests WHERE adapter = ? LIMIT 1", adapter):
                self._tables.run("DELETE FROM gone WHERE adapter = ?", adapter)
                self._tables.run("DELETE FROM clipped WHERE adapter = ?", adapter)
        return bool(rows)

    # --- history ---------------------------------------------------------------------------------

    def _forget(self) -> bool:
        """Go on through the requests, the oldest first."""
        if self._walk is None:
            self._begin_walk()
        if self._walk is None:
            return False
        oldest = self._oldest()
        self._pasts.clear()  # commits since the last step may have opened lanes
        rows = self._tables.rows(
            f"{_ENTRIES} WHERE number > ? ORDER BY number LIMIT ?", self._from, _REQUESTS
        )
        at_once = _FRAME_BYTES if self._walk is Want.NO_OLD else min(_FRAME_BYTES, self._excess_bytes())
        entries = [_entry(row) for row in _within(rows, size=8, at_once=at_once)]
        self._apply(entries, self._walk, oldest)
        if entries:
            self._from = entries[-1].number
        if self._walk is Want.FEWER_BYTES:
            self._stripped_to = self._from
        if self._is_over(entries, self._walk, oldest):
            self._next_walk(self._walk, at_end=not entries)
        return True

    def _apply(self, entries: list[Entry], want: Want, oldest: float) -> None:
        verdicts = {
            entry.number: judge(entry, self._past_of(entry.adapter).needed, want, oldest=oldest)
            for entry in entries
        }
        retried = self._store.retried
        strip = [number for number, verdict in verdicts.items() if verdict is Verdict.STRIP]
        delete = [
            number
            for number, verdict in verdicts.items()
            if verdict is Verdict.DELETE and number not in retried
        ]
        if strip or delete:
            goes = [entry for entry in entries if verdicts[entry.number] is not Verdict.KEEP]
            less = {
                entry.adapter for entry in goes if did_something(entry, self._past_of(entry.adapter).opened)
            }
            with self._tables.transaction():
                self._tables.run_for_each("INSERT OR IGNORE INTO clipped", [(adapter,) for adapter in less])
                self._store.strip(strip)
                self._store.delete(delete)

    def _oldest(self) -> float:
        """Seconds since 1970: what came before is too old."""
        return self._began_unix_s + (self._clock() - self._began) - self._config.keep_s

    def _past_of(self, adapter: AdapterId) -> _Past:
        if adapter not in self._pasts:
            snapshots = self._store.snapshots(adapter, 2)
            before = snapshots[1] if len(snapshots) > 1 else None
            opened = self._store.opened(adapter) if adapter else ()
            self._pasts[adapter] = _Past(needed_from(before, opened), {lane for lane, _ in opened})
        return self._pasts[adapter]

    def _is_over(self, entries: list[Entry], want: Want, oldest: float) -> bool:
        if not entries:
            return True
        if want is Want.NO_OLD:
            return entries[-1].came >= oldest
        return not self._excess_bytes()

    def _begin_walk(self) -> None:
        """If there is any reason to look at requests."""
        if self._clock() < self._walk_at:
            return
        self._walk_at, self._from = self._clock() + _IDLE_S, 0
        first = self._tables.rows("SELECT came FROM requests ORDER BY number LIMIT 1")
        if first and first[0][0] < self._oldest():
            self._walk = Want.NO_OLD
        elif self._excess_bytes():
            self._walk, self._from = Want.FEWER_BYTES, self._stripped_to

    def _next_walk(self, walked: Want, *, at_end: bool) -> None:
        """walked: is over. at_end: it saw all requests after where it began."""
        self._walk, self._from = None, 0
        if not self._excess_bytes():
            return
        if walked is Want.NO_OLD:
            self._walk, self._from = Want.FEWER_BYTES, self._stripped_to
        elif walked is Want.FEWER_BYTES and at_end:
            self._stripped_to = 0  # what was needed when it was passed may be history by now
            self._walk = Want.FEWEST_BYTES

    def _excess_bytes(self) -> int:
        """By how much the journal is larger than it may be."""
        used = self._pragma("page_count") - self._pragma("freelist_count")
        return max(0, used * self._pragma("page_size") - self._config.keep_bytes)

    # --- the file --------------------------------------------------------------------------------

    def _give_back(self) -> bool:
        free, pages = self._pragma("freelist_count"), self._pragma("page_count")
        if free < _FREE_PAGES or free < pages * _FREE_SHARE:
            return False
        self._tables.give_back(_PAGES)
        self._logged_bytes += _PAGES * 4096
        return True

    def _pragma(self, name: str) -> int:
        return int(self._tables.rows(f"PRAGMA {name}")[0][0])


def _within(rows: list[Any], *, size: int, at_once: int) -> list[Any]:
    """Rows until their frames' bytes (column `size`) are enough for one step; at least one."""
    total = 0
    for count, row in enumerate(rows, start=1):
        total += row[size]
        if total >= at_once:
            return rows[:count]
    return rows


def _entry(row: Any) -> Entry:
    number, kind, adapter, lane, seq, order, again, came, size_bytes, whole = row
    return Entry(
        number=number,
        kind=kind,
        adapter=AdapterId(adapter),
        lane=LaneId(lane),
        seq=seq,
        order=order,
        again=bool(again),
        came=came,
        size_bytes=size_bytes,
        whole=bool(whole),
    )
