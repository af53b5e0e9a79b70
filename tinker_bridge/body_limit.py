"""Bounds what a request can make us hold: its body is read here, whole or not at all.

An ASGI application around another one. It comes before the keys are looked at, because the framework
reads a body before anything else.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from ..bus.errors import InvalidRequest
from .answers import error_body, status_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """most_bytes: what a request may send, by its ASGI scope."""

    def __init__(self, app: App, *, most_bytes: Callable[[Mapping[str, Any]], int]) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _read(receive, self._most_bytes(scope))
        except InvalidRequest as error:
            await _refuse(error, send)
            return
        if body is None:
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def rest() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, rest, send)


async def _read(receive: Receive, most_bytes: int) -> bytes | None:
    """None when the client hung up before its end: half a request is none.

    Raises:
        InvalidRequest: it is too large.
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise InvalidRequest(f"the body is larger than {most_bytes} bytes: send less at once")
        more = message.get("more_body", False)
    return bytes(body)


async def _refuse(error: InvalidRequest, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
