"""Changes to what there is: checkpoints published, given a time to live, deleted, copied; sessions moved.

Each is made once, however often a lost reply makes the client ask (see `repeats`); a copy is a future.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...bus.errors import CheckpointExists, InvalidRequest, NotSupported
from ...bus.ids import TenantId
from ..answers import error_body
from ..bodies import CopyBody, ProjectBody, TtlBody
from ..body_fields import Body
from ..bridge import Bridge
from ..copying import checked_source, copy_weights
from ..future_rows import Asked
from ..housekeeping import delete_checkpoint
from ..progress import Progress
from ..records import CheckpointRecord, parsed_path, run_id
from ..results import Result, error_of, json_result
from .reading import Begun, BridgeIn, TenantIn, asked_for, path_of, told

router = APIRouter(prefix="/api/v1", tags=["checkpoints"])
log = structlog.get_logger()

_CHECKPOINT = "/training_runs/{run}/checkpoints/{segment}/{name}"


class Changed(Body):
    tinker_path: str


@router.delete(_CHECKPOINT)
async def delete(
    run: str, segment: str, name: str, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Changed:
    def record() -> CheckpointRecord:
        return bridge.checkpoints.deletable(tenant, _path(run, segment, name))

    async def change() -> None:
        await delete_checkpoint(bridge, record())
        log.info("checkpoint.deleted", run=run, segment=segment, name=name, tenant=tenant)

    await _once(bridge, tenant, request, record, change)
    return Changed(tinker_path=f"tinker://{run}/{segment}/{name}")


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
    record = bridge.checkpoints.owned(tenant, _path(run, segment, name))
    bridge.checkpoints.set_ttl(record, body.ttl_seconds)
    return Changed(tinker_path=record.id)


@router.post("/copy_weights")
async def copy(body: CopyBody, request: Request, bridge: BridgeIn, tenant: TenantIn) -> Changed:
    """Copy a checkpoint into a new training run."""
    asked = asked_for(request, tenant, body)
    if body.weights_access_token or request.headers.get("x-tinker-weights-access-token"):
        raise NotSupported(
            "weights access tokens are not supported by this server: its owner can publish the checkpoint"
        )
    checked_source(bridge, tenant, body)
    if body.session_id is None:
        # Only the header tells one copy from another.
        key = request.headers.get("x-idempotency-key") or secrets.token_hex(16)
        asked = replace(asked, key=("copy", key))
    begun = await begin_copy(bridge, asked)
    await told(bridge, begun)
    while not isinstance(found := await bridge.futures.wait(tenant, begun.future.id, _LOOK_S), Result):
        await bridge.health.check_trainer()
    if found.failed:
        raise error_of(found)
    return Changed.model_validate_json(found.body)


async def begin_copy(bridge: Bridge, asked: Asked) -> Begun:
    body = CopyBody.model_validate_json(asked.body)
    key = asked.key
    if body.session_id is not None and body.model_seq_id is not None:
        key = ("model", run_id(body.session_id, body.model_seq_id))
    digest = hashlib.blake2b(asked.route.encode() + asked.body, digest_size=16).digest()

    async def work(progress: Progress) -> Result:
        made_by = hashlib.blake2b(digest + " ".join(key).encode(), digest_size=16).hexdigest()
        path = await copy_weights(bridge, asked.tenant, body, progress, made_by)
        return json_result({"tinker_path": path})

    return Begun(bridge.futures.start(asked, key, digest, work, session=body.session_id or ""))


STARTS = {"/api/v1/copy_weights": begin_copy}
_LOOK_S = 0.5


@router.put("/sessions/{session}/project")
async def move_session(session: str, body: ProjectBody, bridge: BridgeIn, tenant: TenantIn) -> dict[str, str]:
    """A project is a label here: it exists as soon as it is named."""
    record = bridge.sessions.owned(tenant, session)
    bridge.sessions.change(replace(record, project=body.project_id))
    return {"session_id": record.id, "project_id": body.project_id}


def _path(run: str, segment: str, name: str) -> str:
    """Raises InvalidRequest: the segment is none."""
    path = f"tinker://{run}/{segment}/{name}"
    if parsed_path(path) is None:
        raise InvalidRequest(
            f"{segment[:80]!r} is no kind of checkpoint: write weights, sampler_weights or external_weights"
        )
    return path


async def _set_public(
    bridge: Bridge, tenant: TenantId, request: Request, path: str, *, public: bool
) -> Changed | JSONResponse:
    def check() -> None:
        bridge.checkpoints.check_public(bridge.checkpoints.owned(tenant, path), public=not public)

    async def change() -> None:
        bridge.checkpoints.set_public(bridge.checkpoints.owned(tenant, path), public=public)

    try:
        await _once(bridge, tenant, request, check, change)
        return Changed(tinker_path=path)
    except CheckpointExists as error:
        # As documented. The header spares the client its quick repeats; its slow ones cannot be helped.
        return JSONResponse(error_body(error), status_code=409, headers={"x-should-retry": "false"})


async def _once(
    bridge: Bridge,
    tenant: TenantId,
    request: Request,
    check: Callable[[], object],
    change: Callable[[], Awaitable[None]],
) -> None:
    key = request.headers.get("x-idempotency-key", "")
    what = f"{request.method} {path_of(request)}"
    await bridge.repeats.once(tenant, what, key, check=check, change=change)
