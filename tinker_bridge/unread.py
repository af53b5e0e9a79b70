"""Large answers go out piece by piece, as they are read, and what one tenant leaves unread is bounded.

An ASGI application around another one. The server takes whatever it is given, and keeps a copy for each
connection until its client has read it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..bus.ids import TenantId
from .body_limit import App, Message, Receive, Send

# Of an answer, handed to the server at one time; what is smaller goes at once.
_PIECE_BYTES = 256 * 2**10
# Of one tenant's answers that are being read.
_MOST_BYTES = 256 * 2**20


class Unread:
    """How much of their large answers tenants have not read yet."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes: Counter[TenantId] = Counter()
        self._changed = asyncio.Event()

    async def room(self, tenant: TenantId) -> None:
        """Wait until the tenant has read enough to be told more."""
        while self._bytes[tenant] >= self._most_bytes:
            await self._changed.wait()

    def begun(self, tenant: TenantId, size_bytes: int) -> None:
        self._bytes[tenant] += size_bytes

    def ended(self, tenant: TenantId, size_bytes: int) -> None:
        """It was read, or nobody reads it any more."""
        self._bytes -= Counter({tenant: size_bytes})
        self._changed.set()
        self._changed = asyncio.Event()


class Piecewise:
    """tenant_of: by the ASGI scope of a request; None: nobody's, who are told nothing large."""

    def __init__(
        self, app: App, *, unread: Unread, tenant_of: Callable[[Mapping[str, Any]], TenantId | None]
    ) -> None:
        self._app = app
        self._unread = unread
        self._tenant_of = tenant_of

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if len(message.get("body", b"")) <= _PIECE_BYTES:
                await send(message)
            else:
                await self._in_pieces(self._tenant_of(scope), message, send)

        await self._app(scope, receive, sent)

    async def _in_pieces(self, tenant: TenantId | None, message: Message, send: Send) -> None:
        body, more = memoryview(message["body"]), message.get("more_body", False)
        owner = tenant if tenant is not None else TenantId("")
        self._unread.begun(owner, len(body))
        try:
            for start in range(0, len(body), _PIECE_BYTES):
                piece = bytes(body[start : start + _PIECE_BYTES])
                last = start + _PIECE_BYTES >= len(body)
                await send({**message, "body": piece, "more_body": more or not last})
        finally:
            self._unread.ended(owner, len(body))
