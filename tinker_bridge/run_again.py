"""After a restart: whatever had not ended is started again, by the code that started it first.

All of it at once, in the order in which it came; the trainer's lanes put operations in order. Every id that
the work uses is as before (`future_ids`), so what the daemon did already it answers from its journal.
"""

import asyncio

import structlog

from ..bus.errors import DaemonGone, DaemonNotRunning, Internal, LoractlError
from .bridge import Bridge
from .routes import STARTS

log = structlog.get_logger()


async def run_again(bridge: Bridge) -> None:
    """Returns when all of it is under way."""
    left = bridge.futures.unfinished()
    if left:
        log.info("futures.run_again", count=len(left))
    # Together: one that waits for the base model must not hold up those behind it.
    await asyncio.gather(*(_start(bridge, future_id) for future_id in left))


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
