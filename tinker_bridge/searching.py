"""Search among a tenant's sessions, newest first, page by page."""

from datetime import datetime

from ..bus.ids import TenantId
from .bodies import SearchBody, SearchCursor, StatusQuery
from .listing import moment, texts
from .records import SessionRecord


def found_sessions(
    sessions: list[SessionRecord], tenant: TenantId, body: SearchBody
) -> tuple[list[SessionRecord], SearchCursor | None]:
    """A page of what matches, and where the next one starts; None at the end.

    sessions: all of the tenant's. Nobody sees another's, whichever owners were asked for.
    """
    if body.owner.type == "user" and tenant not in body.owner.owner_urns:
        return [], None
    found = sorted((each for each in sessions if _matches(each, body)), key=_place, reverse=True)
    if body.cursor is not None:
        after = (body.cursor.last_created_at, body.cursor.last_session_id)
        found = [each for each in found if _place(each) < after]
    page = found[: body.limit]
    if len(found) == len(page):
        return page, None
    created, session = _place(page[-1])
    return page, SearchCursor(last_created_at=created, last_session_id=session)


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
