"""HTTP at the edge, bus messages inside: the application, its routes, and how errors leave it."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from .. import __version__
from ..bus.errors import LoractlError
from .answers import error_body, status_of
from .bridge import Bridge
from .routes import ROUTERS

_ABOUT = """The Tinker API, served by loractl: many LoRA adapters trained and sampled on one shared base model.

Point the `tinker` SDK here with the environment that `loractl env` prints."""


def create_app(bridge: Bridge) -> FastAPI:
    app = FastAPI(title="loractl", version=__version__, description=_ABOUT)
    app.state.bridge = bridge
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(LoractlError, _refuse)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LoractlError)
    return JSONResponse(error_body(error), status_code=status_of(error))
