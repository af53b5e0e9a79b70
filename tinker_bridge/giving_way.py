"""Threads beside the loop give way to it where processors are short: what they do is waited for anyway.

On Linux each thread has a niceness of its own, which counts within its process also where the system shares
processors out among groups.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

# Not the lowest: whoever holds Python's lock must get on with it.
NICENESS = 10
_MOST = 19


def give_way() -> None:
    """Called in the thread that gives way."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            ours = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(ours + NICENESS, _MOST))


def pool() -> ThreadPoolExecutor:
    """For `asyncio.to_thread`, of as many threads as a loop's own has."""
    return ThreadPoolExecutor(thread_name_prefix="apart", initializer=give_way)
