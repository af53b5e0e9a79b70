"""When to look for what only cycles keep alive: when there is much of it, or little else to do.

Python looks whenever some more objects came than went, at all that came meanwhile. With thousands of polls held open
that takes up to a tenth of a second again and again, in which nobody is served, and finds nothing: what requests leave
behind goes without it. So this process decides by itself: when more has stayed than what is under way explains.
"""

import asyncio
import gc
from collections.abc import Callable

import psutil

# Objects: what a future takes with its poll and connection, and what else may come to stay; some ten MiB of it.
_EACH = 500
_OTHERS = 100_000
# What hangs on them may be large.
_GROWN_BYTES = 512 * 2**20
# With few futures under way it takes some hundredths of a second, with thousands half of one, and more.
_FEW, _QUIET_S, _AT_LAST_S = 64, 30.0, 900.0
_LOOK_S = 1.0
# Of what was under way at the last look: what is over goes within seconds, with its answer.
_STILL = 0.9


def is_due(stayed: int, under_way: int, since_s: float, grown_bytes: int) -> bool:
    """stayed: objects that came and did not go since the last look, which was since_s ago. under_way: futures.
    grown_bytes: by how much the process is larger than then."""
    if stayed > _OTHERS + _EACH * under_way or grown_bytes > _GROWN_BYTES:
        return True
    return stayed > 0 and since_s >= (_QUIET_S if under_way < _FEW else _AT_LAST_S)


def collect_by_hand() -> None:
    """For this process, from now on. What is here now stays, and is looked at no more."""
    gc.collect()
    gc.freeze()
    gc.disable()


async def keep_collecting(under_way: Callable[[], int]) -> None:
    """Until cancelled, once `collect_by_hand` was called."""
    loop = asyncio.get_running_loop()
    process = psutil.Process()
    last, lately, had_bytes = loop.time(), 0, process.memory_info().rss
    while True:
        await asyncio.sleep(_LOOK_S)
        lately = max(under_way(), int(_STILL * lately))
        has_bytes = process.memory_info().rss
        # What it gave back may come anew.
        had_bytes = min(had_bytes, has_bytes)
        if is_due(gc.get_count()[0], lately, loop.time() - last, has_bytes - had_bytes):
            gc.collect()
            last, had_bytes = loop.time(), process.memory_info().rss
