"""Whether the service is up. Needs no key: load balancers ask."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ...bus.errors import LoractlError
from ...bus.messages import DaemonStatus, GetStatus
from ..base import Bus
from ..health import Health, health_of
from .reading import BridgeIn

router = APIRouter(tags=["health"])

# A probe that gets no answer in this time is told so; load balancers wait no longer either.
_ANSWER_WITHIN_S = 2.0


@router.get("/healthz")
@router.get("/api/v1/healthz")
async def healthz(bridge: BridgeIn) -> JSONResponse:
    health = await check_health(bridge.bus)
    if health.ok:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "missing": list(health.missing)}, status_code=503)


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
