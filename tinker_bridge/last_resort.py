"""What no handler knows is our bug: logged, and answered as such, with an id that the log has, too.

An ASGI application around all others. Without it the framework answers in plain text, which clients of JSON
cannot read. What still waits when the bridge stops is told so.
"""

import asyncio
import secrets
from typing import Any

import msgspec
import structlog

from ..bus.errors import ActorStopping, Internal, LoractlError
from .answers import error_body, status_of
from .body_limit import App, Message, Receive, Send

log = structlog.get_logger()

_STOPPING = "the server is stopping, and this may have been done or not: ask again when it runs"


class LastResort:
    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:  # the server gives up on it when the bridge stops
            log.info("request.broken_off", method=scope["method"], path=scope["path"][:200])
            if not begun:
                await _answer(ActorStopping(_STOPPING), send)
        except Exception:  # the process's boundary: one request must not hide its bug, nor lack an answer
            bug = secrets.token_hex(8)
            log.exception("request.hit_a_bug", bug=bug, method=scope["method"], path=scope["path"][:200])
            if begun:
                raise  # half an answer is out: its connection has to end
            await _answer(Internal(f"the bridge failed on this request; its log says why, under {bug}"), send)


async def _answer(error: LoractlError, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
