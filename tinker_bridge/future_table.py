"""The futures' SQLite file: what is written in one commit, and how it is read again.

One thread writes (`future_journal`), the loop reads with a connection of its own. Apart from the bridge's
records (`store`), which the loop writes itself: it must not wait for a lock that the thread has.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from ..bus.crash_points import crash_point
from ..bus.errors import StorageFailed
from ..bus.ids import TenantId
from ..bus.sqlite_file import give_back, open_database, transaction
from .completions import Completion
from .future_ageing import ROW_BYTES, let_go
from .future_ids import Key
from .future_rows import Aged, Asked, Begun, Change, Decided, Dropped, Ended, Kept, Row, Tried, Unchanged
from .results import Result

_FORMAT = 3
# Repeats come within minutes.
_CHANGES_S = 24 * 3600.0
# Free pages that stay for what comes next: so many, and this share of the file. And how many go at a time.
_FREE_PAGES = 1024
_FREE_SHARE = 0.25
_PAGES = 2048
_SCHEMA = """
CREATE TABLE IF NOT EXISTS futures (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,
    key TEXT NOT NULL, digest BLOB NOT NULL, session TEXT NOT NULL, scope TEXT NOT NULL, grp TEXT NOT NULL,
    began REAL NOT NULL, route TEXT NOT NULL, content_type TEXT NOT NULL, content_encoding TEXT,
    decided BLOB NOT NULL DEFAULT x'', ended REAL, completion INTEGER, size INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '', media_type TEXT NOT NULL DEFAULT '',
    form TEXT NOT NULL DEFAULT '', body BLOB, result BLOB, attempts INTEGER NOT NULL DEFAULT 0,
    read INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS futures_unfinished ON futures (number) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS futures_of_session ON futures (session, ended) WHERE ended IS NOT NULL;
CREATE INDEX IF NOT EXISTS futures_of_tenant ON futures (tenant, ended, session, read, size)
    WHERE ended IS NOT NULL;
CREATE INDEX IF NOT EXISTS futures_of_group ON futures (grp, completion) WHERE grp != '[]';
CREATE INDEX IF NOT EXISTS futures_by_completion ON futures (completion);
CREATE TABLE IF NOT EXISTS totals (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS futures_sized AFTER UPDATE OF size ON futures WHEN new.size != old.size BEGIN
    INSERT INTO totals VALUES (new.tenant, new.size - old.size)
    ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes; END;
CREATE TRIGGER IF NOT EXISTS futures_deleted AFTER DELETE ON futures WHEN old.size > 0 BEGIN
    UPDATE totals SET bytes = bytes - old.size WHERE tenant = old.tenant; END;
CREATE TABLE IF NOT EXISTS changes (
    tenant TEXT, what TEXT, key TEXT, done INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (tenant, what, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
# The highest number that an end ever had: cursors outlive the rows that they point at.
_LAST = "last completion"
# What files of older versions lack, by the version that added it.
_ADDED = {
    2: "ALTER TABLE futures ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;",
    3: "ALTER TABLE futures ADD COLUMN read INTEGER NOT NULL DEFAULT 0; DROP INDEX IF EXISTS futures_ended;",
}
_SUMS = "INSERT INTO totals SELECT tenant, sum(size) FROM futures GROUP BY tenant;"
_COLUMNS = (
    "id, tenant, key, digest, session, scope, grp, decided, attempts, ended, failed, code, media_type, form,"
    " result"
)
_key_of = msgspec.json.Decoder(Key).decode


class FutureTable:
    def __init__(self, file: Path) -> None:
        """Open or make the file.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
        """
        self._db = open_database(file, what="the results in", newest=_FORMAT, changes=_changes)

    def close(self) -> None:
        self._db.close()

    # --- writing, in one thread ------------------------------------------------------------------

    def commit(self, rows: Sequence[Row]) -> None:
        """Make all of them durable, or none. Raises StorageFailed."""
        try:
            with transaction(self._db):
                for row in rows:
                    self._write(row)
                crash_point("futures.written")
            crash_point("futures.committed")
        except sqlite3.Error as error:
            raise StorageFailed(f"results cannot be written to the state directory: {error}") from error
        if any(isinstance(row, Aged) for row in rows):
            self._give_back()

    def _write(self, row: Row) -> None:
        match row:
            case Begun():
                self._begin(row)
            case Decided(id=id_, decided=decided):
                self._db.execute("UPDATE futures SET decided = ? WHERE id = ?", (decided, id_))
            case Ended():
                self._end(row)
            case Tried(attempts=attempts, ids=ids):
                sql = "UPDATE futures SET attempts = ? WHERE id = ?"
                self._db.executemany(sql, [(attempts, id_) for id_ in ids])
            case Dropped(tenant=tenant, ids=ids):
                sql = "DELETE FROM futures WHERE id = ? AND tenant = ? AND ended IS NOT NULL"
                self._db.executemany(sql, [(id_, tenant) for id_ in ids])
            case Aged():
                let_go(lambda sql, *values: self._db.execute(sql, values).fetchall(), row)
                self._db.execute("DELETE FROM changes WHERE at < ?", (row.before_unix_s - _CHANGES_S,))
            case Change():
                values = (row.tenant, row.what, row.key, row.done, row.unix_s)
                self._db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?)", values)
            case Unchanged(tenant=tenant, what=what, key=key):
                sql = "DELETE FROM changes WHERE tenant = ? AND what = ? AND key = ?"
                self._db.execute(sql, (tenant, what, key))

    def _begin(self, row: Begun) -> None:
        asked = row.asked
        self._db.execute(
            "INSERT OR IGNORE INTO futures (id, tenant, key, digest, session, scope, grp, began, route,"
            " content_type, content_encoding, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.id,
                row.tenant,
                _text(row.key),
                row.digest,
                row.session,
                row.scope,
                _text(row.group),
                row.began_unix_s,
                asked.route,
                asked.content_type,
                asked.content_encoding,
                asked.body,
            ),
        )

    def _end(self, row: Ended) -> None:
        """The request is not needed any more; what was decided is if it is sent again without its result."""
        result = row.result
        self._db.execute(
            "UPDATE futures SET ended = ?, completion = ?, size = ?, failed = ?, code = ?, media_type = ?,"
            " form = ?, result = ?, body = NULL, read = 0 WHERE id = ?",
            (
                row.ended_unix_s,
                row.number,
                ROW_BYTES + len(result.body),
                result.failed,
                result.code,
                result.media_type,
                result.form,
                result.body,
                row.id,
            ),
        )
        sql = "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = max(value, excluded.value)"
        self._db.execute(sql, (_LAST, row.number))

    def _give_back(self) -> None:
        """Cut some free pages off the file."""
        # What was to be written is; this is tried again with the next round.
        with suppress(sqlite3.Error):
            ((free,), (pages,)) = (
                self._db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count")
            )
            if free > max(_FREE_PAGES, pages * _FREE_SHARE):
                give_back(self._db, _PAGES)

    # --- reading, in the loop --------------------------------------------------------------------

    def find(self, future_id: str) -> Kept | None:
        rows = self._rows(f"SELECT {_COLUMNS} FROM futures WHERE id = ?", future_id)  # noqa: S608
        return _kept(rows[0]) if rows else None

    def unfinished(self) -> list[Kept]:
        """In the order in which they came."""
        sql = f"SELECT {_COLUMNS} FROM futures WHERE ended IS NULL ORDER BY number"  # noqa: S608
        return [_kept(row) for row in self._rows(sql)]

    def asked(self, future_id: str) -> Asked:
        """The request of an unfinished future."""
        columns = "tenant, route, body, content_type, content_encoding, key"
        row = self._row(f"SELECT {columns} FROM futures WHERE id = ?", future_id)  # noqa: S608
        tenant, route, body, content_type, content_encoding, key = row
        return Asked(TenantId(tenant), route, body, content_type, content_encoding, _key_of(key))

    def completions(self, group: Key, after: int, most: int) -> list[Completion]:
        """Of one group, in the order of their ends."""
        rows = self._rows(
            "SELECT completion, id, failed, coalesce(length(result), 0) FROM futures"
            " WHERE grp = ? AND grp != '[]' AND completion > ? ORDER BY completion LIMIT ?",
            _text(group),
            after,
            most,
        )
        return [Completion(number, id_, bool(failed), size) for number, id_, failed, size in rows]

    def last_completion(self) -> int:
        """The highest number that any end ever had, also one whose result is gone."""
        (kept,) = self._row("SELECT coalesce(max(completion), 0) FROM futures")  # a file of an older version
        (noted,) = self._row("SELECT coalesce(max(value), 0) FROM meta WHERE name = ?", _LAST)
        return max(int(kept), int(noted))

    def change(self, tenant: TenantId, what: str, key: str) -> Change | None:
        sql = "SELECT done, at FROM changes WHERE tenant = ? AND what = ? AND key = ?"
        for done, at in self._rows(sql, tenant, what, key):
            return Change(tenant=tenant, what=what, key=key, done=bool(done), unix_s=at)
        return None

    def _row(self, sql: str, *values: object) -> Any:
        return self._rows(sql, *values)[0]

    def _rows(self, sql: str, *values: object) -> list[Any]:
        """Raises StorageFailed."""
        try:
            with closing(self._db.execute(sql, values)) as rows:
                return rows.fetchall()
        except sqlite3.Error as error:
            raise StorageFailed(f"results cannot be read from the state directory: {error}") from error


def _changes(found: int) -> str:
    added = "".join(sql for version, sql in _ADDED.items() if 0 < found < version)
    return f"{added} {_SCHEMA} {_SUMS}"


def _text(key: Key) -> str:
    return msgspec.json.encode(key).decode()


def _kept(row: Any) -> Kept:
    id_, tenant, key, digest, session, scope, group, decided, attempts, ended, *of_result = row
    failed, code, media_type, form, body = of_result
    return Kept(
        id=id_,
        tenant=TenantId(tenant),
        key=_key_of(key),
        digest=digest,
        session=session,
        scope=scope,
        group=_key_of(group),
        decided=decided,
        attempts=attempts,
        result=None if body is None else Result(body, media_type, bool(failed), form, code),
        expired=ended is not None and body is None,
        ended_unix_s=ended or 0.0,
    )
