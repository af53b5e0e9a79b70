"""Waiting for one's turn on an engine: `turns` decides, this lets coroutines wait for it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from ..bus.ids import TenantId
from .turns import Turns


class Gate:
    """places: how many may be inside at one time."""

    def __init__(self, places: int) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(places)

    @asynccontextmanager
    async def turn(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait for a place and hold it. Cancelling gives it back, or the place in the queue."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _admit(self._turns.enter(tenant, mine))
        try:
            await mine
            yield
        finally:
            _admit(self._turns.leave(mine))


def _admit(granted: Iterable[asyncio.Future[None]]) -> None:
    for future in granted:
        # A waiter that was cancelled in this very turn of the loop leaves by itself.
        if not future.done():
            future.set_result(None)
