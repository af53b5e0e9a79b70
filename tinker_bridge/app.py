"""HTTP at the edge, bus messages inside: the application, its routes, and how errors leave it."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticSerializationError

from .. import __version__
from ..bus.errors import InvalidRequest, LoractlError
from .answers import error_body, status_of
from .body_limit import BodyLimit
from .bridge import Bridge
from .routes import ROUTERS

_ABOUT = """The Tinker API, served by loractl: many LoRA adapters trained and sampled on one shared base model.

Point the `tinker` SDK here with the environment that `loractl env` prints."""


def create_app(bridge: Bridge) -> FastAPI:
    app = FastAPI(title="loractl", version=__version__, description=_ABOUT)
    app.state.bridge = bridge
    app.add_middleware(BodyLimit, most_bytes=bridge.config.bridge.body_bytes)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(LoractlError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    for not_text in (UnicodeEncodeError, PydanticSerializationError):
        app.add_exception_handler(not_text, _refuse_text)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LoractlError)
    return JSONResponse(error_body(error), status_code=status_of(error))


async def _refuse_fields(_request: Request, error: Exception) -> JSONResponse:
    """As every other error, and without the input, which need not be text at all."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))
    return JSONResponse(error_body(InvalidRequest(f"{where or 'the body'}: {first['msg']}")), status_code=422)


async def _refuse_text(_request: Request, _error: Exception) -> JSONResponse:
    """JSON's escapes can make strings that are no text: whoever has to write one down finds that out."""
    error = InvalidRequest("the body holds a string that is not Unicode text: half a surrogate pair")
    return JSONResponse(error_body(error), status_code=status_of(error))
