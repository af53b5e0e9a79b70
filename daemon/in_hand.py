"""The note that a trainer keeps of the requests it has in hand, read when it has died."""

from pathlib import Path

import structlog

from ..bus.in_hand import decode_note
from .decisions import Key

log = structlog.get_logger()


def read_in_hand(file: Path) -> list[Key]:
    """The requests; none where there is no note, or none that can be read."""
    try:
        _, note = decode_note(file.read_bytes())
        return [*note.in_hand]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("in_hand.not_read", reason=str(error))
        return []
