"""The journal's SQLite file: its tables, and how many rows are written at once.

Nothing else of the daemon knows SQLite; what the rows mean is left to `reading`, `store` and `compaction`.

The hot tables only grow at their ends. An outcome has a table of its own, so that no request's row is
written twice, and names its adapter again, so that history is read page by page; which requests have none yet is a small table, for a scan at the start would read everything.
gone: deleted adapters of which there are requests. clipped: adapters that have lost some of their history.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from ...bus.errors import StorageFailed
from ...bus.sqlite_file import give_back, open_database, transaction

FORMAT = 3
# Value lists of one statement. Each statement gives Python's lock away and has to get it back from the
# broker's loop; so many rows at once cost that once. Every number of rows has its own statement, and all
# stay prepared: some 6 MB (measured).
_ROWS_AT_ONCE = 64
_PREPARED = 8 * _ROWS_AT_ONCE
_SETTINGS = (
    # A statement of many rows keeps aside what it changes. In a file that would be written as often as the log.
    "temp_store = MEMORY",
    # The writer's thread does it, when nobody waits for a commit.
    "wal_autocheckpoint = 0",
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, id INTEGER NOT NULL, tenant TEXT NOT NULL, request TEXT NOT NULL,
    kind TEXT NOT NULL, digest BLOB NOT NULL, adapter TEXT NOT NULL, lane TEXT NOT NULL, seq INTEGER NOT NULL,
    size INTEGER NOT NULL, came REAL NOT NULL, frames BLOB);
CREATE INDEX IF NOT EXISTS requests_by_id ON requests (id);
CREATE INDEX IF NOT EXISTS requests_of_lane ON requests (adapter, lane, seq);
CREATE INDEX IF NOT EXISTS requests_that_open ON requests (adapter) WHERE seq = 0;
CREATE TABLE IF NOT EXISTS unfinished (number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS outcomes (
    number INTEGER PRIMARY KEY, ord INTEGER NOT NULL, failed INTEGER NOT NULL, again INTEGER NOT NULL,
    frames BLOB NOT NULL, adapter TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS outcomes_of_adapter ON outcomes (adapter, ord);
CREATE TABLE IF NOT EXISTS crashes (number INTEGER PRIMARY KEY, weight INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS harmed (adapter TEXT PRIMARY KEY, weight INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payloads (
    digest BLOB PRIMARY KEY, refs INTEGER NOT NULL, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payload_bytes (place INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    ord INTEGER PRIMARY KEY, adapter TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL,
    digest TEXT NOT NULL, positions BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS snapshots_of_adapter ON snapshots (adapter, ord);
CREATE TABLE IF NOT EXISTS gone (adapter TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clipped (adapter TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deleted_versions (
    tenant TEXT NOT NULL, adapter TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (tenant, adapter, version));
CREATE TABLE IF NOT EXISTS counter (last INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
CREATE TABLE IF NOT EXISTS events (last INTEGER NOT NULL);
INSERT INTO events SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM events);
"""


class Tables:
    """One connection. It may be handed from one thread to another, and is used by one at a time."""

    def __init__(self, file: Path) -> None:
        """Open or make the file.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
        """
        self._directory = file.parent
        self._db = open_database(
            file,
            what="the journal",
            newest=FORMAT,
            changes=lambda _: _SCHEMA,
            settings=_SETTINGS,
            prepared=_PREPARED,
        )

    def close(self) -> None:
        self._db.close()

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Raises StorageFailed, as everything here does."""
        try:
            with closing(self._db.execute(sql, values)) as found:
                return found.fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def run(self, sql: str, *values: object) -> None:
        try:
            self._db.execute(sql, values).close()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def run_for_each(self, head: str, rows: Sequence[Sequence[object]], tail: str = "") -> None:
        """One statement, `head VALUES (...), (...) tail`, for many rows."""
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[first : first + _ROWS_AT_ONCE]
            self.run(_statement(head, tail, len(some[0]), len(some)), *chain.from_iterable(some))

    def give_back(self, pages: int) -> None:
        """Cut so many free pages off the file."""
        try:
            give_back(self._db, pages)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that is written inside durable, or none of it."""
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StorageFailed:
        try:
            return StorageFailed(f"{error} ({free_bytes(self._directory)} bytes of the disk are free)")
        except OSError:
            return StorageFailed(str(error))


def free_bytes(directory: Path) -> int:
    """What a user without privileges may still write there."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@cache
def _statement(head: str, tail: str, width: int, count: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"{head} VALUES {', '.join([row] * count)} {tail}"
