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
from ..bus.errors import InvalidRequest, LoractlError
from ..bus.ids import TenantId
from .access import Doorkeeper, key_in, tenant_of
from .after_records import AfterRecords
from .answers import RETRY_AFTER_S, error_body, status_of
from .body_limit import Allowed, BodyLimit
from .bridge import Bridge
from .last_resort import LastResort
from .pace import Paced
from .rate_limit import RateLimit
from .rates import Rates
from .routes import ROUTERS
from .routes.reading import path_of
from .routes.training import PASS_PATHS
from .wire.compression import MOST_JSON_BYTES
from .wire.pass_request import shown

_ABOUT = """The Tinker API, served by loractl: many LoRA adapters trained and sampled on one shared base model.

Point the `tinker` SDK here with the environment that `loractl env` prints."""


def create_app(bridge: Bridge) -> FastAPI:
    app = FastAPI(title="loractl", version=__version__, description=_ABOUT)
    app.state.bridge = bridge
    app.add_middleware(AfterRecords, settled=bridge.settled)
    app.add_middleware(BodyLimit, allowed=lambda scope: _allowed(bridge, scope), pace=bridge.pace)
    quotas = bridge.config.quotas
    if quotas.requests_per_s or quotas.request_bytes_per_s:
        app.add_middleware(
            RateLimit,
            rates=Rates(requests_per_s=quotas.requests_per_s, bytes_per_s=quotas.request_bytes_per_s),
            tenant_of=lambda scope: _tenant_of(bridge, scope),
            clock=time.monotonic,
        )
    app.add_middleware(Doorkeeper, keys=bridge.keys)
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


# JSON takes a loop's turn of tens of milliseconds for this much, and memory of some ten times its size.
_SMALL_BYTES = 4 * 2**20
_OPEN_BYTES = 64 * 2**10
_LARGE_PATHS = frozenset(
    {"/api/v1/asample", "/fwdbwd", "/sample", "/generate", "/api/v1/sample", *PASS_PATHS}
)


def _allowed(bridge: Bridge, scope: Mapping[str, Any]) -> Allowed:
    """How large the body of a request may be. Without a key come only questions that have none."""
    tenant = _tenant_of(bridge, scope)
    path = scope["path"]
    most_bytes = bridge.config.bridge.body_bytes
    if tenant is None:
        most_bytes = _OPEN_BYTES
    elif path not in _LARGE_PATHS:
        most_bytes = min(_SMALL_BYTES, most_bytes)
    elif path not in PASS_PATHS or not _is_protobuf(scope):
        most_bytes = min(MOST_JSON_BYTES, most_bytes)
    return Allowed(tenant, most_bytes)


def _is_protobuf(scope: Mapping[str, Any]) -> bool:
    return any(name == b"content-type" and b"protobuf" in value for name, value in scope["headers"])


def _tenant_of(bridge: Bridge, scope: Mapping[str, Any]) -> TenantId | None:
    """Whose key a request came with, before any route is asked; None where that is not known."""
    with contextlib.suppress(LoractlError):  # the doorkeeper has said so
        return tenant_of(bridge.keys, key_in(scope))
    return None
