"""HTTP at the edge, bus messages inside: the application, its routes, and how errors leave it."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticSerializationError
from starlette.exceptions import HTTPException

from .. import __version__
from ..bus.errors import InvalidRequest, LoractlError, StorageFailed
from ..bus.ids import TenantId
from .answers import RETRY_AFTER_S, error_body, status_of
from .body_limit import BodyLimit
from .bridge import Bridge
from .last_resort import LastResort
from .pace import Paced
from .rate_limit import RateLimit
from .rates import Rates
from .routes import ROUTERS
from .routes.reading import path_of
from .wire.pass_request import shown

_ABOUT = """The Tinker API, served by loractl: many LoRA adapters trained and sampled on one shared base model.

Point the `tinker` SDK here with the environment that `loractl env` prints."""


def create_app(bridge: Bridge) -> FastAPI:
    app = FastAPI(title="loractl", version=__version__, description=_ABOUT)
    app.state.bridge = bridge
    app.add_middleware(BodyLimit, most_bytes=lambda scope: _most_bytes(bridge, scope), pace=bridge.pace)
    quotas = bridge.config.quotas
    if quotas.requests_per_s or quotas.request_bytes_per_s:
        app.add_middleware(
            RateLimit,
            rates=Rates(requests_per_s=quotas.requests_per_s, bytes_per_s=quotas.request_bytes_per_s),
            tenant_of=lambda scope: _tenant_of(bridge, scope),
            clock=time.monotonic,
        )
    app.add_middleware(Paced, pace=bridge.pace)
    app.add_middleware(LastResort)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(LoractlError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(RecursionError, _refuse_depth)
    app.add_exception_handler(HTTPException, _refuse_route)
    for not_text in (UnicodeEncodeError, PydanticSerializationError):
        app.add_exception_handler(not_text, _refuse_text)
    app.add_exception_handler(UnicodeDecodeError, _refuse_address)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LoractlError)
    status = status_of(error)
    later = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else None
    return JSONResponse(error_body(error), status_code=status, headers=later)


async def _refuse_fields(request: Request, error: Exception) -> JSONResponse:
    """As every other error, and without the input, which need not be text at all."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))
    if first["type"] == "json_invalid":
        text = f"the body is not JSON: {first['ctx']['error']} at character {where}"
    else:
        text = f"{where}: {first['msg']}" if where else _no_object(request)
    return JSONResponse(error_body(InvalidRequest(text)), status_code=422)


def _no_object(request: Request) -> str:
    """Why a body is not the JSON object it should be: its label, as often as what it holds."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type in ("", "application/json"):
        return "the body is not a JSON object"
    return f"Content-Type {shown(media_type)} is not known: send application/json"


async def _refuse_depth(_request: Request, _error: Exception) -> JSONResponse:
    error = InvalidRequest("the body is nested too deeply")
    return JSONResponse(error_body(error), status_code=status_of(error))


async def _refuse_route(request: Request, error: Exception) -> JSONResponse:
    """No such address, or not with this method."""
    assert isinstance(error, HTTPException)
    code = _ROUTE_CODES.get(error.status_code, InvalidRequest.code)
    path = path_of(request)[:200]
    texts = {
        404: f"there is nothing at {path!r}",
        405: f"{request.method[:20]!r} is not possible at {path!r}",
    }
    text = texts.get(error.status_code, str(error.detail))
    body = {"detail": text, "code": code, "category": "user"}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


_ROUTE_CODES: Mapping[int, str] = {404: "no_such_route", 405: "method_not_allowed"}


async def _refuse_text(_request: Request, _error: Exception) -> JSONResponse:
    """JSON's escapes can make strings that are no text: whoever has to write one down finds that out."""
    error = InvalidRequest("the body holds a string that is not Unicode text: half a surrogate pair")
    return JSONResponse(error_body(error), status_code=status_of(error))


async def _refuse_address(_request: Request, _error: Exception) -> JSONResponse:
    """Bodies are read with care; what is left to the framework are the query's bytes."""
    error = InvalidRequest("the address holds bytes that are no UTF-8 text")
    return JSONResponse(error_body(error), status_code=status_of(error))


# Who sends more than this has a key, and sends datums or prompts. JSON this large takes a loop's turn of
# tens of milliseconds, and memory of some ten times its size.
_SMALL_BYTES = 4 * 2**20
_LARGE_BYTES: Mapping[str, int] = {
    "/api/v1/forward_backward": 2**40,
    "/api/v1/forward": 2**40,
    "/fwdbwd": 64 * 2**20,
    "/api/v1/asample": 64 * 2**20,
    "/sample": 64 * 2**20,
    "/generate": 64 * 2**20,
    "/api/v1/sample": 64 * 2**20,
}


def _most_bytes(bridge: Bridge, scope: Mapping[str, Any]) -> int:
    """How large the body of a request may be."""
    most = bridge.config.bridge.body_bytes
    large = _LARGE_BYTES.get(scope["path"])
    if large is None:
        return min(_SMALL_BYTES, most)
    known = _tenant_of(bridge, scope) is not None
    return min(large if known else _SMALL_BYTES, most)


def _tenant_of(bridge: Bridge, scope: Mapping[str, Any]) -> TenantId | None:
    """Whose key a request came with, before any route is asked; None where that is not known."""
    keys = [value for name, value in scope["headers"] if name == b"x-api-key"]
    with contextlib.suppress(StorageFailed):  # the route says so
        return bridge.keys.tenant_of(keys[0].decode("latin-1")) if keys else None
    return None
