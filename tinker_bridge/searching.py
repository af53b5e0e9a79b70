"""Search among a tenant's sessions, newest first, page by page."""

import math
from collections.abc import AsyncIterator
from datetime import datetime

from ..bus.ids import TenantId
from .bodies import SearchBody, SearchCursor, StatusQuery
from .listing import moment, texts
from .pace import Pace
from .records import SessionRecord
from .store import Store

_READ_AT_ONCE = 100
_ROUNDED_S = 1e-3
# Before the newest.
_END = (math.inf, "")


async def found_sessions(
    store: Store, pace: Pace, tenant: TenantId, body: SearchBody
) -> tuple[list[SessionRecord], SearchCursor | None]:
    """A page of what matches, and where the next one starts; None at the end.

    Nobody sees another's, whichever owners were asked for.
    """
    if body.owner.type == "user" and tenant not in body.owner.owner_urns:
        return [], None
    found: list[SessionRecord] = []
    async for session in _after(store, pace, tenant, body.cursor):
        if _matches(session, body):
            found.append(session)
        if len(found) > body.limit:
            created, last = _place(found[body.limit - 1])
            return found[: body.limit], SearchCursor(last_created_at=created, last_session_id=last)
    return found, None


async def _after(
    store: Store, pace: Pace, tenant: TenantId, cursor: SearchCursor | None
) -> AsyncIterator[SessionRecord]:
    """The tenant's sessions behind a cursor, read a few at a time, for there may be very many."""
    after = None if cursor is None else (cursor.last_created_at, cursor.last_session_id)
    # A cursor's time is rounded: whoever is near it is looked at.
    place = _END if after is None else (after[0].timestamp() + _ROUNDED_S, "")
    while read := store.older(SessionRecord, tenant, place, limit=_READ_AT_ONCE):
        for each in read:
            if after is None or _place(each) < after:
                yield each
        place = (read[-1].created_unix_s, read[-1].id)
        await pace.turn()


def status_shown(session: SessionRecord) -> dict[str, object] | None:
    """None: it expired, so it neither finished nor is known to be running."""
    match session.status:
        case "active":
            return {"type": "active"}
        case "finished":
            return {
                "type": "client_finished",
                "reason": {"type": session.reason or "success"},
                "detail": session.detail or None,
            }
        case "expired":
            return None


def _place(session: SessionRecord) -> tuple[datetime, str]:
    """Where it stands among others; rounded as the cursor that a client sends back is."""
    return moment(session.created_unix_s), session.id


def _matches(session: SessionRecord, body: SearchBody) -> bool:
    metadata = texts(session.user_metadata) or {}
    return (
        _is_meant(session, body)
        and (body.project_ids is None or session.project in body.project_ids)
        and all(metadata.get(key) == value for key, value in body.user_metadata.items())
        and (body.statuses is None or any(_is_in(session, status) for status in body.statuses))
    )


def _is_meant(session: SessionRecord, body: SearchBody) -> bool:
    """With both an id and a name asked for, either is enough, as the API documents."""
    if body.session_id is None and body.display_name is None:
        return True
    name = (session.display_name or "").casefold()
    words = (body.display_name or "").casefold().split()
    return session.id == body.session_id or (bool(words) and all(word in name for word in words))


def _is_in(session: SessionRecord, status: StatusQuery) -> bool:
    shown = status_shown(session)
    if shown is None or shown["type"] != status.type:
        return False
    return status.reasons is None or status.type != "client_finished" or session.reason in status.reasons
