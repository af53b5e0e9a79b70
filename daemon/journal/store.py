"""What is written into the journal's file in one commit.

Frames of `_APART` bytes and more lie in a table of their own under their SHA-256, once, and go when
nothing refers to them. What goes because it is old is left to `compaction`.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ...bus.crash_points import crash_point
from ...bus.errors import StorageFailed
from ...bus.messages import PublishAdapter
from ..decisions import Frames
from .known_ids import id_of
from .reading import Reader, decode_packed
from .records import (
    WITH_FRAMES,
    Crashed,
    Damaged,
    Ended,
    Forgotten,
    Gone,
    Harmed,
    Numbered,
    Received,
    Record,
    Retried,
    Snapshot,
    VersionDeleted,
)
from .tables import Tables

_APART = 4096
_ORDERED = (Ended, Snapshot)
_REQUESTS = (
    "INSERT INTO requests (number, id, tenant, request, kind, digest, adapter, lane, seq, size, came, frames)"
)
_OUTCOMES = (
    "INSERT OR REPLACE INTO outcomes (number, ord, failed, again, frames, adapter)"
    " SELECT column1, column2, column3, column4, column5, adapter FROM ("
)
_THESE = "(SELECT value FROM json_each(?))"
# The trainer keeps the newest and the one before it.
_OLD_SNAPSHOTS = (
    "DELETE FROM snapshots WHERE adapter = ? AND ord NOT IN"
    " (SELECT ord FROM snapshots WHERE adapter = ? ORDER BY ord DESC LIMIT 2)"
)
_encode = msgspec.msgpack.Encoder().encode


class Store(Reader):
    """Reads as well. clock: seconds since 1970."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Raises StorageFailed: the file cannot be opened, or was written by a newer version."""
        super().__init__(Tables(file))
        self._clock = clock
        # Those that run again now. Whoever sent them sends them again where this process ends first.
        self.retried: set[int] = set()

    def commit(self, records: Sequence[Record]) -> None:
        """Make all of them durable, or none. Raises StorageFailed."""
        with self.tables.transaction():
            crash_point("journal.begun")
            self._received([record for record in records if isinstance(record, Received)])
            self._ended([record for record in records if isinstance(record, Ended)])
            for record in records:
                if not isinstance(record, WITH_FRAMES):
                    self._write(record)
            self._count(records)
            crash_point("journal.written")
        self.retried |= {each.number for each in records if isinstance(each, Retried)}
        self.retried -= {each.number for each in records if isinstance(each, Ended)}
        crash_point("journal.committed")

    def _received(self, records: Sequence[Received]) -> None:
        if not records:
            return
        came = self._clock()
        self.tables.run_for_each(_REQUESTS, [self._row(record, came) for record in records])
        self.tables.run_for_each("INSERT INTO unfinished", [(record.number,) for record in records])

    def _row(self, record: Received, came: float) -> tuple[object, ...]:
        return (
            record.number,
            id_of(record.key),
            *record.key,
            record.kind,
            record.digest,
            record.adapter,
            record.lane,
            record.seq,
            sum(map(len, record.frames)),
            came,
            self._packed(record.frames),
        )

    def _ended(self, records: Sequence[Ended]) -> None:
        rows = [
            (
                each.number,
                each.order,
                each.failed,
                each.again,
                _encode([bytes(frame) for frame in each.frames]),
            )
            for each in records
        ]
        # One that was worth another try may have an outcome from before.
        self.tables.run_for_each(_OUTCOMES, rows, ") JOIN requests ON number = column1")
        numbers = [(record.number,) for record in records]
        self.tables.run_for_each("DELETE FROM unfinished WHERE number IN (", numbers, ")")

    def _write(self, record: Record) -> None:
        run = self.tables.run
        match record:
            case Forgotten(number=number):
                self.delete([number])
            case Retried(number=number):
                if self.numbered(number) is None:
                    raise StorageFailed(
                        "it is too long ago that this was asked for first: send it as a new request"
                    )
            case Snapshot():
                self._check_told(record)
                positions = _encode([(each.lane, each.next_seq) for each in record.positions])
                row = (record.order, record.adapter, record.name, record.step, record.digest, positions)
                run("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)", *row)
                run(_OLD_SNAPSHOTS, record.adapter, record.adapter)
            case Damaged(adapter=adapter, name=name):
                run("DELETE FROM snapshots WHERE adapter = ? AND name = ?", adapter, name)
            case Gone(adapter=adapter):
                run("DELETE FROM snapshots WHERE adapter = ?", adapter)
                run("DELETE FROM harmed WHERE adapter = ?", adapter)
                run("INSERT OR IGNORE INTO gone VALUES (?)", adapter)
            case Crashed(numbers=numbers, weight=weight):
                rows = [(number, weight) for number in numbers]
                more = "ON CONFLICT (number) DO UPDATE SET weight = weight + excluded.weight"
                self.tables.run_for_each("INSERT INTO crashes", rows, more)
            case Harmed() | VersionDeleted() | Numbered():
                self._note(record)
            case Received() | Ended():
                raise AssertionError("these are written many at once")

    def _note(self, record: Harmed | VersionDeleted | Numbered) -> None:
        """What is no part of a request."""
        run = self.tables.run
        match record:
            case Harmed(adapter=adapter, weight=weight):
                run("DELETE FROM harmed WHERE adapter = ?", adapter)
                if weight:
                    run("INSERT INTO harmed VALUES (?, ?)", adapter, weight)
            case VersionDeleted(tenant=tenant, adapter=adapter, version=version):
                run("INSERT OR REPLACE INTO deleted_versions VALUES (?, ?, ?)", tenant, adapter, version)
            case Numbered(last_event=last):
                # One that was refused and is tried again comes behind later ones.
                run("UPDATE events SET last = max(last, ?)", last)

    def _check_told(self, snapshot: Snapshot) -> None:
        """Refuse one that holds what has no outcome yet: that would run again on a lane which is past it. A
        publish may be over for its lane long before it is for whoever waits for a sampler."""
        held = {each.lane: each.next_seq for each in snapshot.positions}
        # The unfinished ones are few; the plus keeps SQLite from looking through all of the adapter's requests.
        waiting = (
            "SELECT lane, seq FROM requests WHERE number IN (SELECT number FROM unfinished)"
            " AND +adapter = ? AND seq > 0 AND kind != ?"
        )
        for lane, seq in self.tables.rows(waiting, snapshot.adapter, PublishAdapter.kind):
            if seq < held.get(lane, 0):
                raise StorageFailed(
                    f"snapshot {snapshot.name} holds operation {seq}, whose outcome is not here yet"
                )

    def _count(self, records: Sequence[Record]) -> None:
        """Numbers are never given twice, also where what had them is deleted."""
        used = [each.number for each in records if isinstance(each, Received)]
        used += [each.order for each in records if isinstance(each, _ORDERED)]
        if used:
            self.tables.run("UPDATE counter SET last = max(last, ?)", max(used))

    # --- frames and what lies apart --------------------------------------------------------------

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete requests with all they have."""
        self._let_go(numbers)
        for table in ("requests", "unfinished", "outcomes", "crashes"):
            self.tables.run(f"DELETE FROM {table} WHERE number IN {_THESE}", json.dumps(numbers))  # noqa: S608

    def strip(self, numbers: Sequence[int]) -> None:
        """Delete requests' frames, and the payloads that nothing else refers to."""
        self._let_go(numbers)
        self.tables.run(f"UPDATE requests SET frames = NULL WHERE number IN {_THESE}", json.dumps(numbers))  # noqa: S608

    def _let_go(self, numbers: Sequence[int]) -> None:
        sql = f"SELECT frames FROM requests WHERE number IN {_THESE} AND frames IS NOT NULL"  # noqa: S608
        for (packed,) in self.tables.rows(sql, json.dumps(numbers)):
            self._unpack(decode_packed(packed))

    def _packed(self, frames: Frames) -> bytes:
        return _encode([(len(frame) >= _APART, self._put(frame)) for frame in frames])

    def _put(self, frame: "bytes | bytearray | memoryview") -> bytes:
        if len(frame) < _APART:
            return bytes(frame)
        digest = hashlib.sha256(frame).digest()
        if self.tables.rows("SELECT 1 FROM payloads WHERE digest = ?", digest):
            self.tables.run("UPDATE payloads SET refs = refs + 1 WHERE digest = ?", digest)
            return digest
        self.tables.run("INSERT INTO payload_bytes (bytes) VALUES (?)", memoryview(frame))
        self.tables.run("INSERT INTO payloads VALUES (?, 1, last_insert_rowid())", digest)
        return digest

    def _unpack(self, packed: Sequence[tuple[bool, bytes]]) -> None:
        for digest in (data for apart, data in packed if apart):
            self.tables.run("UPDATE payloads SET refs = refs - 1 WHERE digest = ?", digest)
            places = self.tables.rows(
                "DELETE FROM payloads WHERE digest = ? AND refs <= 0 RETURNING place", digest
            )
            for (place,) in places:
                self.tables.run("DELETE FROM payload_bytes WHERE place = ?", place)
