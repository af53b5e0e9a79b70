"""Which records nobody has a use for any more: of sessions that ended long ago, what nothing is left of.

A run stays for as long as it has a checkpoint, or an adapter that could become one's; a session for as long as
it has a run; a sampler may go with its session's end. Looked for in a thread, for it may take long.
"""

from collections.abc import Iterable

import msgspec

from .records import Record, RunRecord, SamplerRecord, SessionRecord
from .store import HAS_ENDED, LAST_SEEN, Store

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


def past_records(store: Store, before_unix_s: float, held: Iterable[str], *, most: int) -> list[Record]:
    """At most so many of each kind; a session is found once what belonged to it has gone.

    held: samplers with versions that have to go first.

    Raises:
        StorageFailed: the store cannot be read.
    """
    before = {"before": before_unix_s}
    values = {**before, "held": msgspec.json.encode([*held]).decode()}
    samplers = store.found_apart(SamplerRecord, _SAMPLERS, values, most=most)
    runs = store.found_apart(RunRecord, _RUNS, before, most=most)
    return [*samplers, *runs, *store.found_apart(SessionRecord, _SESSIONS, before, most=most)]
