"""The bridge's memory on disk: one SQLite file of records, read and written by the bridge alone.

A record is a row: its id, tenant, parent and time to look it up by, and itself as JSON. Writes are
small and few (nothing is written for a training step or a sample), so they happen in the loop, which does not
wait for the disk: `settling` does.
"""

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..bus.disk_sync import sync
from ..bus.errors import StorageFailed
from ..bus.ids import TenantId
from ..bus.sqlite_file import transaction
from .records import CheckpointRecord, Record, RunRecord, SamplerRecord, SessionRecord
from .settling import Settling

RecordT = TypeVar("RecordT", bound=Record)
Statement = tuple[str, tuple[object, ...]]

_FORMAT = 1
LAST_SEEN = "json_extract(body, '$.last_seen_unix_s')"
HAS_ENDED = "json_extract(body, '$.status') != 'active'"
_EXPIRY = "json_extract(body, '$.expires_unix_s')"
_GONE = "json_extract(body, '$.gone')"
_PROJECT = "json_extract(body, '$.project')"
_KIND, _SIZE = "json_extract(body, '$.kind')", "json_extract(body, '$.size_bytes')"
# Checkpoints that are not listed, which are few: expired, or without their files.
_UNLISTED = (
    f"SELECT id FROM checkpoints WHERE {_EXPIRY} <= {{now}}"  # noqa: S608
    f" UNION ALL SELECT id FROM checkpoints WHERE {_GONE}"
)
_BY_PROJECT = f"""
    SELECT (SELECT {_PROJECT} FROM sessions WHERE sessions.id = runs.parent) AS project,
        count(*), sum(json_extract(checkpoints.body, '$.size_bytes'))
    FROM checkpoints LEFT JOIN runs ON runs.id = checkpoints.parent
    WHERE checkpoints.tenant = :tenant
        AND checkpoints.id NOT IN ({_UNLISTED.format(now=":now")})
    GROUP BY project ORDER BY max(checkpoints.created) DESC"""  # noqa: S608
_TABLES = (SessionRecord, RunRecord, CheckpointRecord, SamplerRecord)


@dataclass(frozen=True, slots=True)
class Only:
    """Which of a tenant's records: a condition in SQL, and its values."""

    where: str = "TRUE"
    values: tuple[object, ...] = ()


ALL = Only()


def of_project(tenant: TenantId, project: str) -> Only:
    """Runs of its sessions."""
    where = f"parent IN (SELECT id FROM sessions WHERE tenant = ? AND {_PROJECT} = ?)"  # noqa: S608
    return Only(where, (tenant, project))


def listed(now_unix_s: float) -> Only:
    """Checkpoints that have not expired and whose files are there."""
    return Only(f"id NOT IN ({_UNLISTED.format(now='?')})", (now_unix_s,))


class Store:
    """secret: random bytes made with the file, for ids that only this store can have given out."""

    def __init__(self, file: Path) -> None:
        """Open or make the file.

        Raises:
            StorageFailed: it cannot be opened, or was written by a newer version.
        """
        try:
            self._db = sqlite3.connect(file, isolation_level=None)
            file.chmod(0o600)
            self._prepare(file)
            self.secret = self._secret()
            sync(file.parent)  # the file's name, too, has to outlive the machine's power
            # From here on what is written waits for `settle`.
            for setting in ("synchronous = NORMAL", "wal_autocheckpoint = 0"):
                self._db.execute(f"PRAGMA {setting}").close()
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"cannot open {file}: {error}") from error
        self.settling = Settling(file, move=lambda: _move_log(file))
        self._file = file

    def close(self) -> None:
        self._db.close()

    def put(self, *records: Record) -> None:
        """Add or replace records: all of them, or none. Raises StorageFailed."""
        self._write([_insertion(each) for each in records])

    def find(self, kind: type[RecordT], id_: str) -> RecordT | None:
        return next(iter(self._select(kind, "WHERE id = ?", id_)), None)

    def owned(self, kind: type[RecordT], tenant: TenantId, id_: str) -> RecordT | None:
        """The record if it is this tenant's; another's is as good as none."""
        record = self.find(kind, id_)
        return record if record is not None and record.tenant == tenant else None

    def page(
        self, kind: type[RecordT], tenant: TenantId, only: Only = ALL, *, limit: int, offset: int
    ) -> list[RecordT]:
        """Newest first, `limit` of them after the first `offset`."""
        order = "ORDER BY created DESC, id DESC"
        # By ids first: what is passed over is found in the index, and no record of it is read.
        ids = f"SELECT id FROM {kind.table} WHERE tenant = ? AND {only.where} {order} LIMIT ? OFFSET ?"  # noqa: S608
        return self._select(kind, f"WHERE id IN ({ids}) {order}", tenant, *only.values, limit, offset)

    def count(self, kind: type[RecordT], tenant: TenantId, only: Only = ALL) -> int:
        sql = f"SELECT count(*) FROM {kind.table} WHERE tenant = ? AND {only.where}"  # noqa: S608
        ((count,),) = self._rows(kind.table, sql, tenant, *only.values)
        return int(count)

    def of_parent(self, kind: type[RecordT], parent: str) -> list[RecordT]:
        """Oldest first."""
        return self._select(kind, "WHERE parent = ? ORDER BY created, id", parent)

    def ids_of_parent(
        self, kind: type[RecordT], parent: str, *, limit: int | None = None, offset: int = 0
    ) -> list[str]:
        """Oldest first, `limit` of them after the first `offset`."""
        sql = f"SELECT id FROM {kind.table} WHERE parent = ? ORDER BY created, id LIMIT ? OFFSET ?"  # noqa: S608
        return [id_ for (id_,) in self._rows(kind.table, sql, parent, -1 if limit is None else limit, offset)]

    def older(
        self, kind: type[RecordT], tenant: TenantId, than: tuple[float, str], *, limit: int
    ) -> list[RecordT]:
        """Newest first, those behind a place in that order: when one was made, and its id."""
        where = "WHERE tenant = ? AND (created, id) < (?, ?) ORDER BY created DESC, id DESC LIMIT ?"
        return self._select(kind, where, tenant, *than, limit)

    def after(self, kind: type[RecordT], id_: str, *, limit: int) -> list[RecordT]:
        """Everybody's, in the order of their ids, the next behind one; "" is before all."""
        return self._select(kind, "WHERE id > ? ORDER BY id LIMIT ?", id_, limit)

    def all(self, kind: type[RecordT]) -> list[RecordT]:
        return self._select(kind, "ORDER BY created, id")

    def expired(self, kind: type[CheckpointRecord], now_unix_s: float) -> list[CheckpointRecord]:
        """Those that were to end by now, oldest first."""
        return self._select(kind, f"WHERE {_EXPIRY} <= ? ORDER BY created, id", now_unix_s)

    def exported_bytes(self, tenant: TenantId) -> int:
        """On disk, of all of a tenant's external checkpoints."""
        sql = f"SELECT coalesce(sum({_SIZE}), 0) FROM checkpoints WHERE tenant = ? AND {_KIND} = 'external'"  # noqa: S608
        ((size_bytes,),) = self._rows(CheckpointRecord.table, sql, tenant)
        return int(size_bytes)

    def delete(self, *records: Record) -> None:
        """All of them, or none. Raises StorageFailed."""
        self._write([_deletion(each) for each in records])

    def _write(self, statements: Sequence[Statement]) -> None:
        """In one transaction."""
        if not statements:
            return
        try:
            with transaction(self._db):
                for statement in statements:
                    self._db.execute(*statement)
        except sqlite3.Error as error:
            raise StorageFailed(f"a record cannot be written to the state directory: {error}") from error
        self.settling.wrote()

    def _select(self, kind: type[RecordT], where: str, *values: Any) -> list[RecordT]:
        sql = f"SELECT body FROM {kind.table} {where}"  # noqa: S608
        return [msgspec.json.decode(body, type=kind) for (body,) in self._rows(kind.table, sql, *values)]

    def _rows(self, table: str, sql: str, *values: Any) -> list[Any]:
        """Raises StorageFailed."""
        try:
            with closing(self._db.execute(sql, values)) as rows:
                return rows.fetchall()
        except sqlite3.Error as error:
            raise StorageFailed(f"{table} cannot be read from the state directory: {error}") from error

    def found_apart(
        self, kind: type[RecordT], where: str, values: Mapping[str, object], *, most: int
    ) -> list[RecordT]:
        """What may take long to find, for a thread: with a connection of its own. Raises StorageFailed."""
        sql = f"SELECT body FROM {kind.table} WHERE {where} LIMIT {most}"  # noqa: S608
        rows = self._rows_apart(kind.table, sql, values)
        return [msgspec.json.decode(body, type=kind) for (body,) in rows]

    def checkpoints_by_project(
        self, tenant: TenantId, now_unix_s: float
    ) -> list[tuple[str | None, int, int]]:
        """Of each project, the newest checkpoint's first, how many checkpoints there are and their bytes; of
        those that are listed. For a thread, as `found_apart`."""
        values = {"tenant": tenant, "now": now_unix_s}
        return self._rows_apart(CheckpointRecord.table, _BY_PROJECT, values)

    def _rows_apart(self, table: str, sql: str, values: Mapping[str, object]) -> list[Any]:
        try:
            with closing(sqlite3.connect(self._file)) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StorageFailed(f"{table} cannot be read from the state directory: {error}") from error

    def _prepare(self, file: Path) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > _FORMAT:
            raise StorageFailed(
                f"{file} was written by a newer loractl: upgrade, or choose another state directory"
            )
        for kind in _TABLES:
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS {kind.table}"
                " (id TEXT PRIMARY KEY, tenant TEXT, parent TEXT, created REAL, body TEXT) WITHOUT ROWID"
            )
            for column in ("tenant", "parent"):
                index = f"{kind.table}_by_{column}"
                self._db.execute(
                    f"CREATE INDEX IF NOT EXISTS {index} ON {kind.table} ({column}, created, id)"
                )
        table = CheckpointRecord.table
        self._db.execute(f"CREATE INDEX IF NOT EXISTS {table}_by_expiry ON {table} ({_EXPIRY})")
        self._db.execute(f"CREATE INDEX IF NOT EXISTS {table}_gone ON {table} (id) WHERE {_GONE}")
        self._db.execute(
            f"CREATE INDEX IF NOT EXISTS sessions_by_end ON sessions ({LAST_SEEN}) WHERE {HAS_ENDED}"
        )
        self._db.execute(f"CREATE INDEX IF NOT EXISTS sessions_by_project ON sessions (tenant, {_PROJECT})")
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB)")
        self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _secret(self) -> bytes:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
        (value,) = self._db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
        return bytes(value)


def _move_log(file: Path) -> None:
    """From the log to where it belongs. What cannot be moved now is with the next."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").close()


def _deletion(record: Record) -> Statement:
    return f"DELETE FROM {record.table} WHERE id = ?", (record.id,)  # noqa: S608


def _insertion(record: Record) -> Statement:
    body = msgspec.json.encode(record).decode()
    row = (record.id, record.tenant, record.parent, record.created_unix_s, body)
    return f"INSERT OR REPLACE INTO {record.table} VALUES (?, ?, ?, ?, ?)", row  # noqa: S608  # our own names
