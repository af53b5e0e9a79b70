"""Large answers go out piece by piece, as they are read, and what one tenant leaves unread is bounded.

The server takes whatever it is given, and keeps a copy for each connection until its client has read it.
"""

import asyncio
import weakref
from collections import Counter
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..bus.ids import TenantId

# What is smaller goes at once, and is not counted.
LARGE_BYTES = 1 * 2**20
_PIECE_BYTES = 256 * 2**10
# Of one tenant's answers that are made or being read.
_MOST_BYTES = 256 * 2**20


class Unread:
    """How much of their large answers tenants have not read yet."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes: Counter[TenantId] = Counter()
        self._changed = asyncio.Event()

    def enter(self, tenant: TenantId, size_bytes: int) -> bool:
        """Whether there is room for one more of the tenant's, which then has it. One alone always has."""
        if size_bytes > LARGE_BYTES:
            if self._bytes[tenant] and self._bytes[tenant] + size_bytes > self._most_bytes:
                return False
            self._bytes[tenant] += size_bytes
        return True

    async def wait(self, timeout_s: float) -> None:
        """Until somebody has read something, or has left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def leave(self, tenant: TenantId, size_bytes: int) -> None:
        """It was read, or nobody reads it any more."""
        if size_bytes > LARGE_BYTES:
            self._bytes -= Counter({tenant: size_bytes})
            self._changed.set()
            self._changed = asyncio.Event()

    def told(self, response: Response, tenant: TenantId, size_bytes: int) -> Response:
        """The response so that it leaves when it was read; size_bytes: as it entered."""
        return _Piecewise(response, self, tenant, size_bytes) if size_bytes > LARGE_BYTES else response


class _Piecewise(Response):
    """The server is given a piece when the client has read the one before."""

    def __init__(self, whole: Response, unread: Unread, tenant: TenantId, size_bytes: int) -> None:
        self.status_code = whole.status_code
        self.body = whole.body
        self.raw_headers = whole.raw_headers
        self.background = None
        # Also where it is never sent, because its client hung up before.
        self._leave = weakref.finalize(self, unread.leave, tenant, size_bytes)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            for start in range(0, len(self.body), _PIECE_BYTES):
                piece, more = self.body[start : start + _PIECE_BYTES], start + _PIECE_BYTES < len(self.body)
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": more})
        finally:
            self._leave()
