"""No answer begins before every record that it may tell of is durable.

An ASGI application around another one.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..bus.errors import StorageFailed
from .answers import error_body, status_of
from .body_limit import App, Message, Receive, Send
from .pace import FREE


class AfterRecords:
    """settled: waits until they are, or raises StorageFailed."""

    def __init__(self, app: App, *, settled: Callable[[], Awaitable[None]]) -> None:
        self._app = app
        self._settled = settled

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        refused = False

        async def told(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                try:
                    await self._settled()
                except StorageFailed as error:
                    refused = True
                    await _refuse(error, send)
            if not refused:
                await send(message)

        await self._app(scope, receive, told)


async def _refuse(error: StorageFailed, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
