"""Which records nobody has a use for any more: of sessions that ended long ago, what nothing is left of.

A run stays for as long as it has a checkpoint, or an adapter that could become one's; a session for as long as
it has a run; a sampler may go with its session's end. Looked for in a thread, for it may be long, with a
connection of its own: it changes nothing.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..bus.errors import StorageFailed
from .records import Record, RunRecord, SamplerRecord, SessionRecord

RecordT = TypeVar("RecordT", bound=Record)

LAST_SEEN = "json_extract(body, '$.last_seen_unix_s')"
HAS_ENDED = "json_extract(body, '$.status') != 'active'"
_LONG_ENDED = f"SELECT id FROM sessions WHERE {HAS_ENDED} AND {LAST_SEEN} < :before"  # noqa: S608
_BARE = (
    "json_extract(body, '$.state') = 'deleted' AND NOT EXISTS"
    " (SELECT 1 FROM checkpoints WHERE checkpoints.parent = runs.id)"
)
_SAMPLERS = f"parent IN ({_LONG_ENDED}) AND id NOT IN (SELECT value FROM json_each(:held))"  # noqa: S608
# Those of no session were removed by name.
_RUNS = f"""(parent IN ({_LONG_ENDED}) OR parent = '' AND json_extract(body, '$.last_request_unix_s') < :before)
    AND {_BARE}"""
_NOTHING_LEFT = (
    "NOT EXISTS (SELECT 1 FROM runs WHERE runs.parent = sessions.id)"
    " AND NOT EXISTS (SELECT 1 FROM samplers WHERE samplers.parent = sessions.id)"
)
_SESSIONS = f"id IN ({_LONG_ENDED}) AND {_NOTHING_LEFT}"


def past_records(file: Path, before_unix_s: float, held: Iterable[str], *, most: int) -> list[Record]:
    """At most so many of each kind; a session is found once what belonged to it has gone.

    held: samplers with versions that have to go first.

    Raises:
        StorageFailed: the file cannot be read.
    """
    values = {"before": before_unix_s, "held": msgspec.json.encode([*held]).decode(), "most": most}
    try:
        with closing(sqlite3.connect(file)) as db:
            samplers = _select(db, SamplerRecord, _SAMPLERS, values)
            runs = _select(db, RunRecord, _RUNS, values)
            return [*samplers, *runs, *_select(db, SessionRecord, _SESSIONS, values)]
    except sqlite3.Error as error:
        raise StorageFailed(f"records cannot be read from the state directory: {error}") from error


def _select(db: sqlite3.Connection, kind: type[RecordT], where: str, values: dict[str, Any]) -> list[RecordT]:
    sql = f"SELECT body FROM {kind.table} WHERE {where} LIMIT :most"  # noqa: S608
    return [msgspec.json.decode(body, type=kind) for (body,) in db.execute(sql, values).fetchall()]
