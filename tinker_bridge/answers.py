"""How errors look over HTTP.

The SDK tries 408, 409, 429 and 5xx again for minutes, so a mistake of the caller is never one of them;
an answer always has a JSON body, for an empty 400 is taken for a broken proxy.
"""

from collections.abc import Mapping

from ..bus.errors import (
    AccessDenied,
    ActorUnavailable,
    AdapterNotFound,
    CheckpointNotFound,
    LaneLost,
    LoractlError,
    QuotaExceeded,
    RequestConflict,
    ResultExpired,
    ResultNotFound,
    SequenceConflict,
    SessionEnded,
    SessionNotFound,
    VersionNotFound,
)

_STATUS: Mapping[type[LoractlError], int] = {
    AccessDenied: 401,
    AdapterNotFound: 404,
    CheckpointNotFound: 404,
    VersionNotFound: 404,
    SessionNotFound: 404,
    ResultNotFound: 404,
    SessionEnded: 410,
    LaneLost: 410,  # asking again would find it lost again
    ResultExpired: 410,
    SequenceConflict: 422,
    RequestConflict: 422,
    QuotaExceeded: 429,
    ActorUnavailable: 503,
}

# When to send again what was refused with 429 (RFC 9110, 10.2.3): what is under way has got on by then.
RETRY_AFTER_S = 2


def status_of(error: LoractlError) -> int:
    """400 for the caller's other mistakes, 503 for what may pass, 500 for our bugs."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    if error.fault == "user":
        return 400
    return 503 if error.retryable else 500


def error_body(error: LoractlError) -> dict[str, str]:
    # A message may quote what no text can hold, and has to leave all the same.
    message = error.message.encode(errors="backslashreplace").decode()
    return {"detail": message, "code": error.code, "category": error.fault}
