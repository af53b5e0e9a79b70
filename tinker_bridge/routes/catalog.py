"""What there is: training runs, checkpoints, sessions, samplers. Nothing here changes anything."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from ..bodies import PathBody, SearchBody, SearchCursor
from ..body_fields import Body
from ..bridge import Bridge
from ..listing import (
    Checkpoint,
    Cursor,
    TrainingRun,
    checkpoint_shown,
    moment,
    readable_run,
    run_shown,
    runs_page,
    texts,
)
from ..records import RunRecord, SamplerRecord, SessionRecord
from ..searching import found_sessions, status_shown
from .reading import BridgeIn, TenantIn


async def _scope(access_scope: Literal["owned", "accessible"] = "owned") -> str:
    """What is accessible beyond the tenant's own is public, and public things are not listed: both are one."""
    return access_scope


SCOPED = [Depends(_scope)]
router = APIRouter(prefix="/api/v1", tags=["catalog"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**53)]


class TrainingRuns(Body):
    training_runs: list[TrainingRun]
    cursor: Cursor


class Checkpoints(Body):
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class OptimizerConfig(Body):
    type: str = "adamw"


class WeightsInfo(Body):
    base_model: str
    is_lora: bool = True
    lora_rank: int
    train_unembed: bool
    train_mlp: bool
    train_attn: bool
    optimizer_config: OptimizerConfig = OptimizerConfig()


class Sessions(Body):
    sessions: list[str]


class Session(Body):
    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None
    display_name: str | None


class Sampler(Body):
    sampler_id: str
    base_model: str
    model_path: str | None


class FoundSessions(Body):
    sessions: list[dict[str, Any]]
    next_cursor: SearchCursor | None


@router.get("/training_runs", dependencies=SCOPED)
async def training_runs(
    bridge: BridgeIn,
    tenant: TenantIn,
    limit: Limit = 20,
    offset: Offset = 0,
    project_id: str | None = None,
) -> TrainingRuns:
    page, total = runs_page(bridge, tenant, project_id, limit=limit, offset=offset)
    shown = [run_shown(bridge, tenant, run, bridge.checkpoints.listed_of_run(run.id)) for run in page]
    return TrainingRuns(training_runs=shown, cursor=Cursor(offset=offset, limit=limit, total_count=total))


@router.get("/training_runs/{run}", dependencies=SCOPED)
async def training_run(run: str, bridge: BridgeIn, tenant: TenantIn) -> TrainingRun:
    """The tenant's own run, or one with a public checkpoint."""
    record, checkpoints = readable_run(bridge, tenant, run)
    return run_shown(bridge, tenant, record, checkpoints)


@router.get("/training_runs/{run}/checkpoints")
async def checkpoints_of_run(
    run: str, bridge: BridgeIn, tenant: TenantIn, limit: Limit | None = None, offset: Offset = 0
) -> Checkpoints:
    """Oldest first; all of them, unless a limit is given."""
    _, found = readable_run(bridge, tenant, run)
    page = found[offset:] if limit is None else found[offset : offset + limit]
    cursor = None if limit is None else Cursor(offset=offset, limit=limit, total_count=len(found))
    return Checkpoints(checkpoints=[checkpoint_shown(each) for each in page], cursor=cursor)


@router.get("/checkpoints")
async def checkpoints(
    bridge: BridgeIn, tenant: TenantIn, limit: Limit = 100, offset: Offset = 0
) -> Checkpoints:
    """The tenant's own, newest first."""
    page, total = bridge.checkpoints.page(tenant, limit=limit, offset=offset)
    return Checkpoints(
        checkpoints=[checkpoint_shown(each) for each in page],
        cursor=Cursor(offset=offset, limit=limit, total_count=total),
    )


@router.post("/weights_info")
async def weights_info(body: PathBody, bridge: BridgeIn, tenant: TenantIn) -> WeightsInfo:
    """What a checkpoint, the tenant's own or a public one, is made of."""
    record = bridge.checkpoints.find(tenant, body.tinker_path)
    return WeightsInfo(
        base_model=record.base_model,
        lora_rank=record.lora.rank,
        train_unembed=record.lora.train_unembed,
        train_mlp=record.lora.train_mlp,
        train_attn=record.lora.train_attn,
    )


@router.get("/sessions", dependencies=SCOPED)
async def sessions(
    bridge: BridgeIn,
    tenant: TenantIn,
    limit: Limit = 20,
    offset: Offset = 0,
) -> Sessions:
    page = bridge.store.page(SessionRecord, tenant, limit=limit, offset=offset)
    return Sessions(sessions=[each.id for each in page])


@router.get("/sessions/{session}", dependencies=SCOPED)
async def session(
    session: str, bridge: BridgeIn, tenant: TenantIn, limit: Limit | None = None, offset: Offset = 0
) -> Session:
    """With its runs and its samplers, oldest first; all of them, unless a limit for each is given."""
    record = bridge.sessions.owned(tenant, session)
    ids = partial(bridge.store.ids_of_parent, parent=record.id, limit=limit, offset=offset)
    return Session(
        training_run_ids=ids(RunRecord),
        sampler_ids=ids(SamplerRecord),
        user_metadata=texts(record.user_metadata),
        display_name=record.display_name,
    )


@router.post("/sessions/search")
async def search_sessions(body: SearchBody, bridge: BridgeIn, tenant: TenantIn) -> FoundSessions:
    page, cursor = await found_sessions(bridge.store, bridge.pace, tenant, body)
    return FoundSessions(sessions=[_summary(bridge, each) for each in page], next_cursor=cursor)


@router.get("/samplers/{sampler}")
async def sampler(sampler: str, bridge: BridgeIn, tenant: TenantIn) -> Sampler:
    record = bridge.samplers.owned(tenant, sampler)
    return Sampler(sampler_id=record.id, base_model=record.base_model, model_path=record.model_path)


def _summary(bridge: Bridge, session: SessionRecord) -> dict[str, Any]:
    runs = bridge.runs.of_session(session.id)
    checkpoints = [each for run in runs for each in bridge.checkpoints.listed_of_run(run.id)]
    return {
        "session_id": session.id,
        "created_at": moment(session.created_unix_s),
        "owner": session.tenant,
        "project_id": session.project or "",
        "status": status_shown(session),
        "checkpoints_count": len(checkpoints),
        "display_name": session.display_name,
        "user_metadata": texts(session.user_metadata),
        "checkpoint_storage_bytes": sum(each.size_bytes for each in checkpoints),
    }
