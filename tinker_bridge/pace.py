"""Shares the loop's time out: however much comes at once, a heartbeat waits a few milliseconds.

The loop runs whatever is ready before it looks for news. A hundred bodies that came together, or a thousand
polls that end together, would all be served before the heartbeat behind them. So whoever has something to do
for a request takes a turn for it first, and each round of the loop has a bounded number of them, in the order
in which they were asked for. Heartbeats take none.

While there is more to come after work on many bytes, the loop rests for as long as that took: a heartbeat that
comes meanwhile finds it idle, or reading a few requests, and the system wakes a process soon that often sleeps,
however busy the machine is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

# What a step of a small request costs, beside work on so many bytes: about a quarter of a millisecond.
_STEP_BYTES = 128 * 2**10
# A few milliseconds. What is larger by itself has a round alone.
_ROUND_BYTES = 8 * _STEP_BYTES
# What took longer than this was held up by others, and they are not helped by more.
_LONGEST_REST_S = 0.05

# What tells of nothing that is written down, and may not wait.
FREE = frozenset({"/api/v1/session_heartbeat", "/healthz", "/api/v1/healthz"})

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]


class Pace:
    def __init__(self) -> None:
        self._left = _ROUND_BYTES
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._next: asyncio.Handle | None = None
        # Of the round under way: since when, and work on how many bytes it has.
        self._since_s = 0.0
        self._bytes = 0

    async def turn(self, size_bytes: int = 0) -> None:
        """Wait until there is time for a step, or for work on so many bytes."""
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._begin(loop)
            self._next = loop.call_soon(self._round)
        if not self._waiting and self._left > 0:
            self._take(size_bytes)
            return
        mine: asyncio.Future[None] = loop.create_future()
        self._waiting.append((mine, size_bytes))
        await mine

    def _take(self, size_bytes: int) -> None:
        self._left -= max(size_bytes, _STEP_BYTES)
        self._bytes += size_bytes

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._since_s, self._bytes = loop.time(), 0
        self._left = _ROUND_BYTES

    def _round(self) -> None:
        """What had its turn is done: rest if that was much and others wait, or go on."""
        loop = asyncio.get_running_loop()
        if self._waiting and self._bytes >= _STEP_BYTES:
            rest_s = min(loop.time() - self._since_s, _LONGEST_REST_S)
            self._left = self._bytes = 0
            self._next = loop.call_later(rest_s, self._round)
            return
        # As long as turns are taken, so that the next round's are counted anew.
        if self._left == _ROUND_BYTES and not self._waiting:
            self._next = None
            return
        self._begin(loop)
        while self._waiting and self._left > 0:
            first, size_bytes = self._waiting.popleft()
            if not first.done():  # who asked was cancelled
                first.set_result(None)
                self._take(size_bytes)
        self._next = loop.call_soon(self._round)  # behind them


class Paced:
    """An ASGI application around another one: every request begins with a turn."""

    def __init__(self, app: Asgi, *, pace: Pace) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in FREE:
            await self._pace.turn()
        await self._app(scope, receive, send)
