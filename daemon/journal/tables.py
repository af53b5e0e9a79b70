"""The journal's SQLite file: its tables, how it is opened, and how many rows are written at once.

WAL with full synchronisation: what was committed is there after the power went. Nothing else of the
daemon knows SQLite; what the rows mean is left to `reading`, `store` and `compaction`.

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

FORMAT = 3
# Value lists of one statement. Each statement gives Python's lock away and has to get it back from the
# broker's loop; so many rows at once cost that once. Every number of rows has its own statement, and all
# stay prepared: some 6 MB (measured).
_ROWS_AT_ONCE = 64
_PREPARED = 8 * _ROWS_AT_ONCE
# The log may grow beyond it for a large request; afterwards it is cut to this.
_LOG_BYTES = 64 * 2**20
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
        try:
            self._db = sqlite3.connect(
                file, isolation_level=None, check_same_thread=False, cached_statements=_PREPARED
            )
            try:
                file.chmod(0o600)
                self._prepare(file)
                _sync(self._directory)  # the file's name, too, has to outlive the machine's power
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"cannot open the journal {file}: {error}") from error

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
            # As a script, because Python steps a statement without columns once, and each step frees one page.
            self._db.executescript(f"PRAGMA incremental_vacuum({pages})").close()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that is written inside durable, or none of it."""
        try:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _prepare(self, file: Path) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise StorageFailed(
                f"{file} was written by a newer loractl: upgrade, or choose another state directory"
            )
        for setting in (
            "auto_vacuum = INCREMENTAL",  # heeded before the first table is made, not later
            "journal_mode = WAL",
            "synchronous = FULL",
            # A statement of many rows keeps aside what it changes. In a file that would be written as often as the log.
            "temp_store = MEMORY",
            "wal_autocheckpoint = 0",  # the writer's thread does it, when nobody waits for a commit
            f"journal_size_limit = {_LOG_BYTES}",
        ):
            self._db.execute(f"PRAGMA {setting}").close()
        if found < FORMAT:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")

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


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
