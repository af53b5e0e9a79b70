"""When to look for what only cycles keep alive: when there is much of it, or little else to do.

Python looks whenever some more objects came than went, at all that came meanwhile. With thousands of polls held open
that takes up to a tenth of a second again and again, in which nobody is served, and finds nothing: what requests leave
behind goes without it. So this process decides by itself: when more has stayed than what is under way explains.
"""

import asyncio
import gc
from collections.abc import Callable

# Objects: what a future takes with its poll and connection, and what else may come to stay; some ten MiB of it.
_EACH = 500
_OTHERS = 100_000
# With few futures under way it takes some hundredths of a second.
_FEW, _QUIET_S = 64, 30.0
_LOOK_S = 1.0
# Of what was under way at the last look: what is over goes within seconds, with its answer.
_STILL = 0.9


def is_due(stayed: int, under_way: int, since_s: float) -> bool:
    """stayed: objects that came and did not go since the last look, which was since_s ago. under_way: futures."""
    if stayed > _OTHERS + _EACH * under_way:
        return True
    return stayed > 0 and under_way < _FEW and since_s >= _QUIET_S


def collect_by_hand() -> None:
    """For this process, from now on. What is here now stays, and is looked at no more."""
    gc.collect()
    gc.freeze()
    gc.disable()


async def keep_collecting(under_way: Callable[[], int]) -> None:
    """Until cancelled, once `collect_by_hand` was called."""
    loop = asyncio.get_running_loop()
    last, lately = loop.time(), 0
    while True:
        await asyncio.sleep(_LOOK_S)
        lately = max(under_way(), int(_STILL * lately))
        if is_due(gc.get_count()[0], lately, loop.time() - last):
            gc.collect()
            last = loop.time()
