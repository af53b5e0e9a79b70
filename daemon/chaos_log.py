"""What chaos did, in the daemon's log."""

import structlog

from .chaos import Chaos

log = structlog.get_logger()


def say_deeds(chaos: Chaos) -> None:
    """Log what was done since the last time."""
    deeds, chaos.deeds = chaos.deeds, []
    for deed in deeds:
        log.info("chaos.acted", act=deed.act, what=deed.what, request=deed.request)
    broken, chaos.broken = chaos.broken, []
    for promise in broken:
        log.error("chaos.promise_broken", promise=promise)


def say_end(chaos: Chaos) -> None:
    say_deeds(chaos)
    log.warning("chaos.ended", done=chaos.summary)
