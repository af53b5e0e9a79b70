"""What takes long on something that was sent happens in a thread, so that the loop goes on.

One piece of each tenant's at a time, and two of all: a few kilobytes of zstd can be a hundred megabytes, and
whoever sends many of them waits for themselves, not others for them.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from ..bus.ids import TenantId

T = TypeVar("T")

# What is larger is worked on in a thread: hashing alone is half the work on it, and leaves the loop free.
INLINE_BYTES = 32 * 2**10

_AT_ONCE = 2


class Apart:
    def __init__(self) -> None:
        self._all = asyncio.Semaphore(_AT_ONCE)
        # Weak: a lock is here for as long as somebody has it, or waits for it.
        self._own: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    async def when_large(self, tenant: TenantId, size_bytes: int, work: Callable[[], T]) -> T:
        """`run`, or at once where it is work on little: a thread costs more."""
        return await self.run(tenant, work) if size_bytes > INLINE_BYTES else work()

    async def run(self, tenant: TenantId, work: Callable[[], T]) -> T:
        """What `work` returns or raises."""
        own = self._own.get(tenant)
        if own is None:
            own = self._own[tenant] = asyncio.Lock()
        async with own, self._all:
            working = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(working)
            finally:
                # The thread goes on when nobody waits for it any more, and has its place until it is done.
                while not working.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait({working})
