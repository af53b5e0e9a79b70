"""Bounds what a request can make us hold: its body is read here, whole or not at all.

An ASGI application around another one. It comes before the keys are looked at, because the framework
reads a body before anything else.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from ..bus.errors import InvalidRequest
from .answers import error_body, status_of
from .pace import Pace

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """most_bytes: what a request may send, by its ASGI scope."""

    def __init__(self, app: App, *, most_bytes: Callable[[Mapping[str, Any]], int], pace: Pace) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._pace = pace

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(receive, self._most_bytes(scope), self._pace)
        except InvalidRequest as error:
            await _refuse(error, send)
            return
        if body is None:
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def rest() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, rest, send)


async def _read(receive: Receive, most_bytes: int, pace: Pace) -> bytes | None:
    """None when the client hung up before its end: half a request is none.

    Raises:
        InvalidRequest: it is too large.
    """
    parts: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size_bytes += len(parts[-1])
        if size_bytes > most_bytes:
            raise InvalidRequest(f"the body is larger than {most_bytes} bytes: send less at once")
        if not message.get("more_body", False):
            break
        # Nothing more is read from the socket until then.
        await pace.turn(len(parts[-1]))
    if len(parts) > 1:
        await pace.turn(size_bytes)  # whoever gets it reads, copies and hashes all of it
    return b"".join(parts)


async def _refuse(error: InvalidRequest, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
