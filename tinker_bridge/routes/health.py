"""Whether the service is up. Needs no key: load balancers ask."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from .reading import BridgeIn

router = APIRouter(tags=["health"])


@router.get("/healthz")
@router.get("/api/v1/healthz")
async def healthz(bridge: BridgeIn) -> JSONResponse:
    health = await bridge.health.found()
    if health.ok:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "missing": list(health.missing)}, status_code=503)
