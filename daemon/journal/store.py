"""The journal's SQLite file: what is written in one commit, and how it is read again.

WAL with full synchronisation: what was committed is there after the power went. One thread writes, the
broker's loop reads with a connection of its own. Frames of `_APART` bytes and more lie in a table of
their own under their SHA-256, once, and go when nothing refers to them.
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from ...bus.errors import StorageFailed
from ...bus.ids import AdapterId, LaneId, RequestId, TenantId
from ...bus.messages import CreateAdapter, LanePosition
from ..decisions import Frames, Key
from .records import (
    Crashed,
    Damaged,
    Ended,
    Forgotten,
    Gone,
    Logged,
    Received,
    Record,
    Snapshot,
    VersionDeleted,
)

FORMAT = 1
_APART = 4096
_COLUMNS = (
    "number, tenant, request, kind, digest, adapter, lane, seq, ord, failed, again, crashes, came, size"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, request TEXT NOT NULL, kind TEXT NOT NULL,
    digest BLOB NOT NULL, adapter TEXT NOT NULL, lane TEXT NOT NULL, seq INTEGER NOT NULL, frames BLOB,
    size INTEGER NOT NULL, came REAL NOT NULL, crashes INTEGER NOT NULL DEFAULT 0,
    ord INTEGER, failed INTEGER NOT NULL DEFAULT 0, again INTEGER NOT NULL DEFAULT 0, outcome BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS requests_by_id ON requests (tenant, request);
CREATE INDEX IF NOT EXISTS requests_of_adapter ON requests (adapter, ord) WHERE adapter != '';
CREATE INDEX IF NOT EXISTS requests_unfinished ON requests (number) WHERE ord IS NULL;
CREATE TABLE IF NOT EXISTS payloads (digest BLOB PRIMARY KEY, refs INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    ord INTEGER PRIMARY KEY, adapter TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL,
    digest TEXT NOT NULL, positions BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS snapshots_of_adapter ON snapshots (adapter, ord);
CREATE TABLE IF NOT EXISTS deleted_versions (
    tenant TEXT NOT NULL, adapter TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (adapter, version));
"""

# A frame as it is, or the digest of one that lies apart.
_Packed = list[tuple[bool, bytes]]
_encode = msgspec.msgpack.Encoder().encode
_decode_packed = msgspec.msgpack.Decoder(_Packed).decode
_decode_positions = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...]).decode


class Store:
    def __init__(self, file: Path) -> None:
        """Open or make the file.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
        """
        try:
            self._db = sqlite3.connect(file, isolation_level=None)
            file.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise StorageFailed(
                    f"{file} was written by a newer loractl: upgrade, or choose another state directory"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"cannot open the journal {file}: {error}") from error

    def close(self) -> None:
        self._db.close()

    # --- writing ---------------------------------------------------------------------------------

    def commit(self, records: Iterable[Record]) -> None:
        """Make all of them durable, or none. Raises StorageFailed."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for record in records:
                    self._write(record)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageFailed(str(error)) from error

    def _write(self, record: Record) -> None:
        match record:
            case Received():
                self._received(record)
            case Ended(number=number, order=order, failed=failed, again=again):
                packed = _encode([bytes(frame) for frame in record.frames])
                self._db.execute(
                    "UPDATE requests SET ord = ?, failed = ?, again = ?, outcome = ? WHERE number = ?",
                    (order, failed, again, packed, number),
                )
            case Forgotten(number=number):
                self._remove("number = ?", number)
            case Snapshot():
                positions = _encode([(each.lane, each.next_seq) for each in record.positions])
                self._db.execute(
                    "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
                    (record.order, record.adapter, record.name, record.step, record.digest, positions),
                )
            case Damaged(adapter=adapter, name=name):
                self._db.execute("DELETE FROM snapshots WHERE adapter = ? AND name = ?", (adapter, name))
            case Gone(adapter=adapter):
                self._db.execute("DELETE FROM snapshots WHERE adapter = ?", (adapter,))
                self._forget_payloads("adapter = ? AND ord IS NOT NULL", adapter)
                self._db.execute(
                    "UPDATE requests SET adapter = '', frames = NULL WHERE adapter = ? AND ord IS NOT NULL",
                    (adapter,),
                )
            case Crashed(numbers=numbers, weight=weight):
                self._db.executemany(
                    "UPDATE requests SET crashes = crashes + ? WHERE number = ?",
                    [(weight, number) for number in numbers],
                )
            case VersionDeleted(tenant=tenant, adapter=adapter, version=version):
                row = (tenant, adapter, version)
                self._db.execute("INSERT OR REPLACE INTO deleted_versions VALUES (?, ?, ?)", row)

    def _received(self, record: Received) -> None:
        tenant, request = record.key
        self._db.execute(
            "INSERT INTO requests (number, tenant, request, kind, digest, adapter, lane, seq, frames, size, came)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.number,
                tenant,
                request,
                record.kind,
                record.digest,
                record.adapter,
                record.lane,
                record.seq,
                _encode([self._put(frame) for frame in record.frames]),
                sum(map(len, record.frames)),
                time.time(),
            ),
        )

    def _put(self, frame: Any) -> tuple[bool, bytes]:
        if len(frame) < _APART:
            return False, bytes(frame)
        digest = hashlib.sha256(frame).digest()
        self._db.execute(
            "INSERT INTO payloads VALUES (?, 1, ?) ON CONFLICT (digest) DO UPDATE SET refs = refs + 1",
            (digest, memoryview(frame)),
        )
        return True, digest

    def _remove(self, where: str, *values: object) -> None:
        """Delete requests, and the payloads that nothing else refers to."""
        self._forget_payloads(where, *values)
        self._db.execute(f"DELETE FROM requests WHERE {where}", values)  # noqa: S608

    def _forget_payloads(self, where: str, *values: object) -> None:
        rows = self._db.execute(
            f"SELECT frames FROM requests WHERE frames IS NOT NULL AND {where}",  # noqa: S608
            values,
        ).fetchall()
        digests = [(digest,) for (packed,) in rows for apart, digest in _decode_packed(packed) if apart]
        self._db.executemany("UPDATE payloads SET refs = refs - 1 WHERE digest = ?", digests)
        self._db.executemany("DELETE FROM payloads WHERE digest = ? AND refs <= 0", digests)

    # --- reading (`records.Past`) ----------------------------------------------------------------

    def last_number(self) -> int:
        numbers = self._row("SELECT max(max(number), coalesce(max(ord), 0)) FROM requests")
        orders = self._row("SELECT max(ord) FROM snapshots")
        return max(numbers[0] or 0, orders[0] or 0)

    def find(self, key: Key) -> Logged | None:
        found = self._logged("tenant = ? AND request = ?", *key)
        return found[0] if found else None

    def unfinished(self) -> Sequence[Logged]:
        return self._logged("ord IS NULL ORDER BY number")

    def adapters(self) -> Sequence[AdapterId]:
        named = self._rows("SELECT DISTINCT adapter FROM requests WHERE adapter != '' AND seq > 0")
        return [AdapterId(adapter) for (adapter,) in named if self.after(AdapterId(adapter))]

    def snapshot(self, adapter: AdapterId) -> Snapshot | None:
        columns = "ord, name, step, digest, positions"
        sql = f"SELECT {columns} FROM snapshots WHERE adapter = ? ORDER BY ord DESC LIMIT 1"  # noqa: S608
        rows = self._rows(sql, adapter)
        if not rows:
            return None
        order, name, step, digest, positions = rows[0]
        held = tuple(
            LanePosition(lane=LaneId(lane), next_seq=seq) for lane, seq in _decode_positions(positions)
        )
        return Snapshot(order=order, adapter=adapter, name=name, step=step, digest=digest, positions=held)

    def begins(self, adapter: AdapterId) -> bool:
        where = "adapter = ? AND kind = ? AND ord IS NOT NULL AND NOT failed"
        return bool(self._logged(where, adapter, CreateAdapter.kind))

    def lanes(self, adapter: AdapterId) -> Sequence[LanePosition]:
        snapshot = self.snapshot(adapter)
        held = {each.lane: each for each in snapshot.positions} if snapshot is not None else {}
        since = snapshot.order if snapshot is not None else 0
        opened = self._logged(
            "adapter = ? AND seq = 0 AND lane != '' AND NOT failed AND ord > ?", adapter, since
        )
        fresh = {each.lane: LanePosition(lane=each.lane, next_seq=1) for each in opened}
        return [*({**fresh, **held}).values()]

    def after(self, adapter: AdapterId) -> Sequence[Logged]:
        held = {each.lane: each.next_seq for each in self.lanes(adapter)}
        found = self._logged("adapter = ? AND seq > 0 ORDER BY ord IS NULL, ord, number", adapter)
        return [each for each in found if each.lane in held and each.seq >= held[each.lane]]

    def owner(self, adapter: AdapterId) -> TenantId | None:
        rows = self._rows("SELECT tenant FROM requests WHERE adapter = ? AND adapter != '' LIMIT 1", adapter)
        return TenantId(rows[0][0]) if rows else None

    def numbered(self, number: int) -> Logged | None:
        return next(iter(self._logged("number = ?", number)), None)

    def history(self, adapter: AdapterId, after: int, limit: int) -> Sequence[Logged]:
        where = (
            "adapter = ? AND seq > 0 AND (ord IS NULL OR ord > ?) ORDER BY ord IS NULL, ord, number LIMIT ?"
        )
        return self._logged(where, adapter, after, limit)

    def request(self, number: int) -> Frames:
        (packed,) = self._row("SELECT frames FROM requests WHERE number = ?", number)
        return [self._get(*each) for each in _decode_packed(packed)]

    def outcome(self, number: int) -> Frames:
        (packed,) = self._row("SELECT outcome FROM requests WHERE number = ?", number)
        return msgspec.msgpack.decode(packed, type=list[bytes])

    def deleted_versions(self) -> Sequence[VersionDeleted]:
        return [
            VersionDeleted(tenant=TenantId(tenant), adapter=AdapterId(adapter), version=version)
            for tenant, adapter, version in self._rows(
                "SELECT tenant, adapter, version FROM deleted_versions"
            )
        ]

    def _get(self, apart: bool, data: bytes) -> bytes:
        if not apart:
            return data
        (found,) = self._row("SELECT bytes FROM payloads WHERE digest = ?", data)
        return bytes(found)

    def _logged(self, where: str, *values: object) -> list[Logged]:
        rows = self._rows(f"SELECT {_COLUMNS} FROM requests WHERE {where}", *values)  # noqa: S608
        return [_logged(row) for row in rows]

    def _row(self, sql: str, *values: object) -> Any:
        return self._rows(sql, *values)[0]

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with closing(self._db.execute(sql, values)) as rows:
            return rows.fetchall()


def _logged(row: Any) -> Logged:
    number, tenant, request, kind, digest, adapter, lane, seq, order, failed, again, crashes, came, size = row
    return Logged(
        number=number,
        key=(TenantId(tenant), RequestId(request)),
        kind=kind,
        digest=digest,
        adapter=AdapterId(adapter),
        lane=LaneId(lane),
        seq=seq,
        order=order,
        failed=bool(failed),
        again=bool(again),
        crashes=crashes,
        came_unix_s=came,
        size_bytes=size,
    )
