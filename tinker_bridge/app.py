"""HTTP at the edge, bus messages inside. So far it says whether the service is up."""

from typing import Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from ..bus.errors import LoractlError
from ..bus.messages import DaemonStatus, GetStatus, Message
from .health import Health, health_of

# A probe that gets no answer in this time is told so; load balancers wait no longer either.
_ANSWER_WITHIN_S = 2.0


class Bus(Protocol):
    """What is used of `AsyncClient`."""

    async def request(self, body: Message, *, timeout_s: float | None = None) -> Message: ...


def create_app(bus: Bus) -> FastAPI:
    app = FastAPI(title="loractl", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    @app.get("/api/v1/healthz")
    async def healthz() -> JSONResponse:
        health = await check_health(bus)
        if health.ok:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable", "missing": list(health.missing)}, status_code=503)

    return app


async def check_health(bus: Bus) -> Health:
    """Ask the broker how the trainer is; a broker that does not answer is what is missing then."""
    try:
        status = await bus.request(GetStatus(), timeout_s=_ANSWER_WITHIN_S)
    except TimeoutError:
        return Health((f"the daemon did not answer within {_ANSWER_WITHIN_S:g} s",))
    except LoractlError as error:
        return Health((error.message,))
    assert isinstance(status, DaemonStatus)
    return health_of(status)
