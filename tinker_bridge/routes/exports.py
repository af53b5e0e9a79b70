"""External checkpoints: saved, and their files handed out at addresses that need no key."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from ...bus.errors import InvalidRequest
from ..bodies import SaveExternalBody
from ..body_fields import Body
from ..bridge import Bridge
from ..exporting import SaveExternal
from ..future_rows import Asked
from ..listing import moment
from ..records import tinker_path
from .reading import Begun, BridgeIn, TenantIn, asked_of, described, told
from .training import submitted

router = APIRouter(prefix="/api/v1", tags=["exports"])


class Addresses(Body):
    urls: dict[str, str]
    expires: datetime


@router.post("/save_weights_external", openapi_extra=described(SaveExternalBody))
async def save_weights_external(request: Request, bridge: BridgeIn, tenant: TenantIn) -> dict[str, Any]:
    return await told(bridge, await begin_save_external(bridge, await asked_of(request, tenant)))


async def begin_save_external(bridge: Bridge, asked: Asked) -> Begun:
    return submitted(
        bridge,
        asked,
        SaveExternalBody,
        lambda body: SaveExternal(body, bridge.checkpoints, bridge.exports),
    )


@router.get("/training_runs/{run}/checkpoints/{segment}/{name}/external_weights_urls")
async def external_weights_urls(
    run: str, segment: str, name: str, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Addresses:
    """Where to read each file, from anywhere that reaches this server as the caller did."""
    if segment != "external_weights":
        raise InvalidRequest("only external weights (tinker://<run>/external_weights/<name>) have addresses")
    record = bridge.checkpoints.find(tenant, tinker_path(run, "external", name))
    addresses, ends = bridge.exports.addresses(record)
    # The host as the caller named it: what we listen on may mean nothing where it is.
    base = f"{str(request.base_url).rstrip('/')}{router.prefix}/exports"
    return Addresses(urls={file: f"{base}/{each}" for file, each in addresses.items()}, expires=moment(ends))


@router.get("/exports/{signed}/{name}", response_class=FileResponse)
async def file(signed: str, name: str, bridge: BridgeIn) -> FileResponse:
    """One file of an export. The address is the permission."""
    path = bridge.exports.file_at(signed, name)
    return FileResponse(path, media_type="application/octet-stream", filename=name)


STARTS = {"/api/v1/save_weights_external": begin_save_external}
