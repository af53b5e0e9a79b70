"""Holds fast senders back: 429 with Retry-After, before their bodies are read. Which rate is `rates`'.

An ASGI application around another one. Polls for results and heartbeats never count, so that nobody is
thrown out for asking how far things are; nor does what comes without a known key, which is refused anyway.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from ..bus.errors import QuotaExceeded
from ..bus.ids import TenantId
from .answers import error_body, status_of
from .body_limit import App, Message, Receive, Send
from .rates import Rates

FREE = frozenset(
    {
        "/healthz",
        "/api/v1/healthz",
        "/api/v1/session_heartbeat",
        "/api/v1/retrieve_future",
        "/api/v1/retrieve_futures",
        "/retrieve_future",
    }
)
# The SDK obeys a Retry-After of a minute at most, and makes up one of its own beyond.
_LONGEST_WAIT_S = 60


class RateLimit:
    """tenant_of: whose request this is, by its ASGI scope; None for nobody's. clock: of seconds."""

    def __init__(
        self,
        app: App,
        *,
        rates: Rates,
        tenant_of: Callable[[Mapping[str, Any]], TenantId | None],
        clock: Callable[[], float],
    ) -> None:
        self._app, self._rates, self._tenant_of, self._clock = app, rates, tenant_of, clock

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        tenant = self._tenant_of(scope)
        if tenant is None:
            await self._app(scope, receive, send)
            return
        wait_s, setting = self._rates.wait_s(tenant, self._clock())
        if wait_s > 0:
            await _refuse(tenant, setting, wait_s, send)
            return
        self._rates.count_request(tenant, self._clock())

        async def counted() -> Message:
            message = await receive()
            self._rates.count_bytes(tenant, len(message.get("body", b"")), self._clock())
            return message

        await self._app(scope, counted, send)


async def _refuse(tenant: TenantId, setting: str, wait_s: float, send: Send) -> None:
    later_s = min(max(1, math.ceil(wait_s)), _LONGEST_WAIT_S)
    error = QuotaExceeded(f"{tenant} sends faster than {setting} allows: send this again in {later_s} s")
    headers = [(b"content-type", b"application/json"), (b"retry-after", str(later_s).encode())]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
