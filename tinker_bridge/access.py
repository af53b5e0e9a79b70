"""Who may come in: a key is asked for before anything of a request is read but its first lines.

An ASGI application around others. The routes look the key up again, for they need to know whose it is.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..bus.errors import AccessDenied, LoractlError
from ..bus.ids import TenantId
from ..bus.keys import Keys
from .answers import error_body, status_of
from .body_limit import App, Receive, Send

_OPEN = frozenset(
    {"/healthz", "/api/v1/healthz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
_SIGNED = "/api/v1/exports/"


class Doorkeeper:
    def __init__(self, app: App, *, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            try:
                tenant_of(self._keys, key_in(scope))
            except LoractlError as error:
                await _refuse(error, send)
                return
        await self._app(scope, receive, send)


def tenant_of(keys: Keys, key: str | None) -> TenantId:
    """Raises AccessDenied, StorageFailed."""
    if not key:
        raise AccessDenied("send your API key as X-API-Key: `loractl env` prints the local user's")
    tenant = keys.tenant_of(key)
    if tenant is None:
        raise AccessDenied("this API key is not known here: `loractl keys create NAME` makes one")
    return tenant


def key_in(scope: Mapping[str, Any]) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"x-api-key"]
    return found[0].decode("latin-1") if found else None


def _is_open(scope: Mapping[str, Any]) -> bool:
    """Whether the service is well, and how it is talked to, is no secret; a signed address is its own key."""
    path: str = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path.rstrip("/") in _OPEN or path.startswith(_SIGNED))


async def _refuse(error: LoractlError, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error))})
