"""The note that a trainer keeps of the requests it has in hand, read when it has died."""

from pathlib import Path

import msgspec
import structlog

from ..bus.ids import RequestId, TenantId
from .decisions import Key

log = structlog.get_logger()


def read_in_hand(file: Path) -> list[Key]:
    """The requests; none where there is no note, or none that can be read."""
    try:
        noted = msgspec.json.decode(file.read_bytes(), type=list[tuple[str, str]])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("in_hand.not_read", reason=str(error))
        return []
    return [(TenantId(tenant), RequestId(request)) for tenant, request in noted]
