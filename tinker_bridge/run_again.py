"""After a restart: whatever had not ended is started again, by the code that started it first.

All of it at once, in the order in which it came; the trainer's lanes put operations in order. Every id that
the work uses is as before (`future_ids`), so what the daemon did already it answers from its journal.

A body may be what the process died of. So it is written down what is in hand until it is on its way: what was
when a process died is tried alone by the next one, and not any more by the third.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from ..bus.errors import DaemonGone, DaemonNotRunning, Internal, LoractlError, Quarantined, StorageFailed
from .bridge import Bridge
from .future import Future
from .routes import STARTS

log = structlog.get_logger()

_MOST_ATTEMPTS = 2
# For what waits for something else: a part of the daemon that is away.
_ON_ITS_WAY_S = 1.0


async def run_again(bridge: Bridge) -> None:
    """Returns when all of it is under way."""
    left = bridge.futures.unfinished()
    if left:
        log.info("futures.run_again", count=len(left))
    for future in left:
        if future.attempts >= _MOST_ATTEMPTS:
            _quarantine(bridge, future)
    # Together: one that waits for the base model must not hold up those behind it.
    await _in_hand(bridge, [each for each in left if not each.attempts])
    for future in left:
        if 0 < future.attempts < _MOST_ATTEMPTS:
            log.info("future.tried_alone", future=future.id)
            await _in_hand(bridge, [future])


async def _in_hand(bridge: Bridge, futures: Sequence[Future]) -> None:
    """Start them. All of them were tried as often."""
    if not futures:
        return
    try:
        await bridge.futures.tried(futures, futures[0].attempts + 1)
    except StorageFailed as error:
        log.warning("futures.not_written_down", reason=error.message)
    try:
        await asyncio.gather(*(_start(bridge, future.id) for future in futures))
        with suppress(TimeoutError):
            async with asyncio.timeout(_ON_ITS_WAY_S):
                await asyncio.gather(*(future.progress.made.wait() for future in futures))
    finally:
        bridge.futures.tried(futures, 0)  # whoever ends this process in order has nothing against them


async def _start(bridge: Bridge, future_id: str) -> None:
    await bridge.pace.turn()
    asked = bridge.futures.asked(future_id)
    await bridge.pace.turn(len(asked.body))
    try:
        start = STARTS.get(asked.route)
        if start is None:
            raise Internal(f"this version does not know how to go on with {asked.route}")
        await start(bridge, asked)
    except (DaemonGone, DaemonNotRunning):
        bridge.futures.gone.set()
    except LoractlError as error:
        bridge.futures.fail(future_id, error)
    except Exception:  # the loop's boundary: one that hits a bug must not keep the others from going on
        log.exception("future.not_run_again", route=asked.route, tenant=asked.tenant)
        bridge.futures.fail(future_id, Internal("the bridge failed on this request; its log says why"))


def _quarantine(bridge: Bridge, future: Future) -> None:
    """An operation uses up its number all the same, or its lane would wait for it."""
    error = Quarantined("the bridge died twice while it had this request in hand: it is not tried any more")
    log.error("future.quarantined", future=future.id)
    try:
        bridge.training.refuse(bridge.futures.asked(future.id), future.digest, error)
    except LoractlError:
        bridge.futures.fail(future.id, error)
