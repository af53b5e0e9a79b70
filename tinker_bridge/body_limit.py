"""Bounds what a request can make us hold: its body is read here, whole or not at all.

An ASGI application around another one, behind the one that asks for the key: the framework reads a body
before anything else.
"""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..bus.errors import InvalidRequest, LoractlError, QuotaExceeded
from ..bus.ids import TenantId
from .answers import RETRY_AFTER_S, error_body, status_of
from .body_budget import BodyBudget, Reading
from .pace import Pace

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# What is smaller is not counted: there is one of a connection at most.
_SMALL_BYTES = 64 * 2**10
# A client may take so long, and longer for what it has sent at this rate.
_PATIENCE_S = 60.0
_SLOWEST_BYTES_PER_S = 32 * 2**10


@dataclass(frozen=True, slots=True)
class Allowed:
    """Whose request it is, if that is known, and what its body may have."""

    tenant: TenantId | None
    most_bytes: int


class BodyLimit:
    """allowed: what a request may send, by its ASGI scope."""

    def __init__(
        self,
        app: App,
        *,
        allowed: Callable[[Mapping[str, Any]], Allowed],
        pace: Pace,
        budget: BodyBudget | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._app = app
        self._allowed = allowed
        self._pace = pace
        self._budget = budget or BodyBudget()
        self._patience_s = patience_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed = self._allowed(scope)
        reading = self._budget.open(allowed.tenant)
        try:
            body = await self._read(receive, reading, allowed.most_bytes)
            if body is not None:
                await self._app(scope, _given(body, receive), send)
        except _Refused as refused:
            await _refuse(refused, send)
        finally:
            self._budget.close(reading)

    async def _read(self, receive: Receive, reading: Reading, most_bytes: int) -> bytes | None:
        """None when the client hung up before its end: half a request is none.

        Raises:
            _Refused: it is too large or too slow, or there is no room.
        """
        # Not a list of parts: to put megabytes together in one go takes as long as a heartbeat may wait.
        body = io.BytesIO()
        size_bytes = counted_bytes = 0
        slowness = _Slowness(self._patience_s)
        while True:
            message = await slowness.next(receive, size_bytes)
            if message["type"] == "http.disconnect":
                return None
            part_bytes = body.write(message.get("body", b""))
            size_bytes += part_bytes
            if size_bytes > most_bytes:
                raise _Refused(
                    InvalidRequest(f"the body is larger than {most_bytes} bytes: send less at once")
                )
            if size_bytes > _SMALL_BYTES:
                await self._budget_for(reading, size_bytes - counted_bytes)
                counted_bytes = size_bytes
            if not message.get("more_body", False):
                break
            # Nothing more is read from the socket until then.
            await self._pace.turn(part_bytes)
        reading.whole = True
        if part_bytes < size_bytes:
            await self._pace.turn(size_bytes)  # whoever gets it reads, copies and hashes all of it
        return body.getvalue()

    async def _budget_for(self, reading: Reading, size_bytes: int) -> None:
        try:
            await self._budget.take(reading, size_bytes)
        except QuotaExceeded as error:
            raise _Refused(error) from error


class _Slowness:
    """How long a client was waited for; what we were waited for does not count."""

    def __init__(self, patience_s: float) -> None:
        self._left_s = patience_s

    async def next(self, receive: Receive, had_bytes: int) -> Message:
        """Raises _Refused."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._left_s + had_bytes / _SLOWEST_BYTES_PER_S):
                return await receive()
        except TimeoutError as error:
            raise _Refused(InvalidRequest("the body comes too slowly: send it again"), 408) from error
        finally:
            self._left_s -= time.monotonic() - begun


class _Refused(Exception):
    """status: where it is not the error's own."""

    def __init__(self, error: LoractlError, status: int = 0) -> None:
        self.error = error
        self.status = status or status_of(error)


def _given(body: bytes, receive: Receive) -> Receive:
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def rest() -> Message:
        return whole.pop() if whole else await receive()

    return rest


async def _refuse(refused: _Refused, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    if refused.status == 429:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if refused.status == 408:
        headers.append((b"connection", b"close"))  # the rest is not waited for
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(refused.error))})
