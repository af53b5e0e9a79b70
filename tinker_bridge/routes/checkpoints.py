"""Changes to what there is: checkpoints published, given a time to live, deleted, copied; sessions moved.

Each is made once, however often a lost reply makes the client ask (see `repeats`).
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...bus.errors import CheckpointExists, InvalidRequest, NotSupported
from ...bus.ids import TenantId
from ..answers import error_body
from ..bodies import Body, CopyBody, ProjectBody, TtlBody
from ..bridge import Bridge
from ..copying import copy_weights
from ..housekeeping import delete_checkpoint
from ..records import CheckpointRecord, parsed_path
from .reading import BridgeIn, TenantIn

router = APIRouter(prefix="/api/v1", tags=["checkpoints"])
log = structlog.get_logger()

_CHECKPOINT = "/training_runs/{run}/checkpoints/{segment}/{name}"


class Changed(Body):
    tinker_path: str


@router.delete(_CHECKPOINT)
async def delete(
    run: str, segment: str, name: str, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Changed:
    async def change() -> str:
        record = owned_checkpoint(bridge, tenant, run, segment, name)
        await delete_checkpoint(bridge, record)
        log.info("checkpoint.deleted", path=record.id, tenant=tenant)
        return record.id

    return Changed(tinker_path=await _once(bridge, tenant, request, change))


@router.post(
    _CHECKPOINT + "/publish", response_model=Changed, responses={409: {"description": "public already"}}
)
async def publish(
    run: str, segment: str, name: str, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Changed | JSONResponse:
    """Let everyone with a key load this checkpoint and sample from it."""
    return await _set_public(bridge, tenant, request, f"tinker://{run}/{segment}/{name}", public=True)


@router.delete(
    _CHECKPOINT + "/publish", response_model=Changed, responses={409: {"description": "private already"}}
)
async def unpublish(
    run: str, segment: str, name: str, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Changed | JSONResponse:
    return await _set_public(bridge, tenant, request, f"tinker://{run}/{segment}/{name}", public=False)


@router.put(_CHECKPOINT + "/ttl")
async def set_ttl(
    run: str, segment: str, name: str, body: TtlBody, bridge: BridgeIn, tenant: TenantIn
) -> Changed:
    """Let it expire in so many seconds from now; null keeps it for ever."""
    record = owned_checkpoint(bridge, tenant, run, segment, name)
    bridge.checkpoints.set_ttl(record, body.ttl_seconds)
    return Changed(tinker_path=record.id)


@router.post("/copy_weights")
async def copy(body: CopyBody, request: Request, bridge: BridgeIn, tenant: TenantIn) -> Changed:
    """Copy a checkpoint into a new training run."""
    if body.weights_access_token or request.headers.get("x-tinker-weights-access-token"):
        raise NotSupported(
            "weights access tokens are not supported by this server: its owner can publish the checkpoint"
        )
    return Changed(
        tinker_path=await _once(bridge, tenant, request, lambda: copy_weights(bridge, tenant, body))
    )


@router.put("/sessions/{session}/project")
async def move_session(session: str, body: ProjectBody, bridge: BridgeIn, tenant: TenantIn) -> dict[str, str]:
    """A project is a label here: it exists as soon as it is named."""
    record = bridge.sessions.owned(tenant, session)
    bridge.sessions.change(replace(record, project=body.project_id))
    return {"session_id": record.id, "project_id": body.project_id}


def owned_checkpoint(bridge: Bridge, tenant: TenantId, run: str, segment: str, name: str) -> CheckpointRecord:
    """Raises InvalidRequest, CheckpointNotFound."""
    path = f"tinker://{run}/{segment}/{name}"
    if parsed_path(path) is None:
        raise InvalidRequest(
            f"{segment[:80]!r} is no kind of checkpoint: write weights, sampler_weights or external_weights"
        )
    return bridge.checkpoints.owned(tenant, path)


async def _set_public(
    bridge: Bridge, tenant: TenantId, request: Request, path: str, *, public: bool
) -> Changed | JSONResponse:
    async def change() -> str:
        bridge.checkpoints.set_public(bridge.checkpoints.owned(tenant, path), public=public)
        return path

    try:
        return Changed(tinker_path=await _once(bridge, tenant, request, change))
    except CheckpointExists as error:
        # As documented. The header spares the client its quick repeats; its slow ones cannot be helped.
        return JSONResponse(error_body(error), status_code=409, headers={"x-should-retry": "false"})


async def _once(
    bridge: Bridge, tenant: TenantId, request: Request, change: Callable[[], Coroutine[Any, Any, str]]
) -> str:
    key = request.headers.get("x-idempotency-key", "")
    return await bridge.repeats.once(tenant, f"{request.method} {request.url.path}", key, change)
