"""Which results are let go of: what is old, and what is most of all where there are too many.

Beyond the bound, those tenants give who have the most, down to a common level; nobody else's results go. Of
a tenant's own, results of ended sessions go first. What is left of one of a live session is its key, its
digest and what its work decided, so that the same request, sent again, ends as it did.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .future_rows import Aged

# What a row costs beside its result.
ROW_BYTES = 512
# Smaller ones are not worth being emptied.
_WORTH_BYTES = 2 * ROW_BYTES
# Old rows go so many at a time: what waits for the same commit should not wait long.
_AT_A_TIME = 4000

# Runs one statement, and returns its rows.
Run = Callable[..., list[Any]]

# Walks the index from one session to the next, however many rows there are of each.
_OLD = """
WITH RECURSIVE each(session) AS (
    SELECT min(session) FROM futures WHERE ended IS NOT NULL
    UNION ALL
    SELECT (SELECT min(session) FROM futures WHERE ended IS NOT NULL AND session > each.session)
    FROM each WHERE each.session IS NOT NULL)
SELECT number FROM each CROSS JOIN futures WHERE futures.session = each.session AND ended IS NOT NULL
    AND ended < ? AND each.session NOT IN (SELECT value FROM json_each(?)) LIMIT ?
"""
_LIVE = "session IN (SELECT value FROM json_each(?))"
_ENDED = f"NOT {_LIVE}"
# In this order, the oldest first; whether a result that is worth it leaves its row.
_GIVEN = (
    (_ENDED, False),
    (f"{_LIVE} AND read AND size > {_WORTH_BYTES}", True),
    (f"{_LIVE} AND read", False),
    (_LIVE, True),
)


def let_go(run: Run, aged: Aged) -> None:
    """Inside of a transaction."""
    for id_ in aged.read:
        run("UPDATE futures SET read = 1 WHERE id = ?", id_)
    live = msgspec.json.encode(aged.live_sessions).decode()
    run(f"DELETE FROM futures WHERE number IN ({_OLD})", aged.before_unix_s, live, _AT_A_TIME)  # noqa: S608
    totals = dict(run("SELECT tenant, bytes FROM totals"))
    for tenant, excess_bytes in excess(totals, aged.most_bytes).items():
        _give(run, tenant, excess_bytes, live)
    run("DELETE FROM totals WHERE bytes = 0")


def excess(totals: Mapping[str, int], most_bytes: int) -> dict[str, int]:
    """How much each tenant has to give, so that all have most_bytes together."""
    left_bytes, left = most_bytes, len(totals)
    for _, size_bytes in sorted(totals.items(), key=lambda each: each[1]):
        if size_bytes * left > left_bytes:
            level = left_bytes // left
            return {tenant: size - level for tenant, size in totals.items() if size > level}
        left_bytes -= size_bytes
        left -= 1
    return {}


def _give(run: Run, tenant: str, excess_bytes: int, live: str) -> None:
    for where, leaves_row in _GIVEN:
        sql = f"SELECT number, size FROM futures WHERE tenant = ? AND ended IS NOT NULL AND {where}"  # noqa: S608
        found = run(f"{sql} ORDER BY ended LIMIT ?", tenant, live, _AT_A_TIME)
        for number, size_bytes in found:
            if leaves_row and size_bytes > _WORTH_BYTES:
                run(
                    "UPDATE futures SET result = NULL, read = 1, size = ? WHERE number = ?", ROW_BYTES, number
                )
                excess_bytes -= size_bytes - ROW_BYTES
            else:
                run("DELETE FROM futures WHERE number = ?", number)
                excess_bytes -= size_bytes
            if excess_bytes <= 0:
                return
        if len(found) == _AT_A_TIME:
            return  # the next round goes on with these, before others have to go
