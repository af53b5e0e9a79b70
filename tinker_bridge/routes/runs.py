"""Training runs: made fresh or from a checkpoint, loaded, described."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request

from ...bus.errors import InvalidRequest, NotSupported
from ..adapters import lora_spec
from ..bodies import CreateModelBody, LoadWeightsBody, ModelBody
from ..bridge import Bridge
from ..future_rows import Asked
from ..operations import Load, loaded_result
from ..progress import Progress, Work
from ..records import run_id
from ..results import Result, json_result
from .reading import (
    Begun,
    BridgeIn,
    TenantIn,
    asked_for,
    asked_of,
    checked,
    described,
    json_object,
    told,
)
from .training import Started, submitted

router = APIRouter(prefix="/api/v1", tags=["training"])


@router.post("/create_model")
async def create_model(
    body: CreateModelBody, request: Request, bridge: BridgeIn, tenant: TenantIn
) -> Started:
    return await told(bridge, await begin_create_model(bridge, asked_for(request, tenant, body)))


async def begin_create_model(bridge: Bridge, asked: Asked) -> Begun:
    body = CreateModelBody.model_validate_json(asked.body)
    session = bridge.sessions.active(asked.tenant, body.session_id)
    run = run_id(session.id, body.model_seq_id)
    digest = _digest(asked)

    async def work(progress: Progress) -> Result:
        _check_optimizer(body.optimizer_config)
        if body.lora_config is None:
            raise NotSupported("full fine-tuning is not supported by this server: give a lora_config")
        lora = lora_spec(progress.origin, **body.lora_config.model_dump())
        metadata = body.user_metadata or {}
        record = await bridge.runs.create(
            asked.tenant, session.id, run, body.base_model, lora, metadata, progress, made_by=digest.hex()
        )
        return json_result({"type": "create_model", "model_id": record.id})

    return _begun_run(bridge, asked, session.id, run, digest, work)


@router.post("/load_weights", openapi_extra=described(LoadWeightsBody))
async def load_weights(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """Into a run under way (model_id, seq_id), or into a new one (session_id, model_seq_id)."""
    return await told(bridge, await begin_load_weights(bridge, await asked_of(request, tenant)))


async def begin_load_weights(bridge: Bridge, asked: Asked) -> Begun:
    fields = json_object(asked.body)
    if fields.get("model_id") is not None:
        return submitted(bridge, asked, LoadWeightsBody, lambda body: Load(body, bridge.checkpoints))
    body = checked(LoadWeightsBody, fields)
    if body.session_id is None or body.model_seq_id is None:
        raise InvalidRequest("load_weights needs model_id and seq_id, or session_id and model_seq_id")
    session = bridge.sessions.active(asked.tenant, body.session_id)
    run = run_id(session.id, body.model_seq_id)
    digest = _digest(asked)

    async def work(progress: Progress) -> Result:
        _check_optimizer(body.optimizer_config)
        source = bridge.checkpoints.find(asked.tenant, body.path)
        bridge.base.check(body.base_model)
        record = await bridge.runs.create_from(
            asked.tenant,
            session.id,
            run,
            source,
            body.user_metadata or {},
            progress,
            optimizer=body.optimizer,
            made_by=digest.hex(),
        )
        return loaded_result(record, body.path)

    return _begun_run(bridge, asked, session.id, run, digest, work)


@router.post("/get_info")
async def get_info(body: ModelBody, request: Request, bridge: BridgeIn, tenant: TenantIn) -> dict[str, Any]:
    run = bridge.runs.owned(tenant, body.model_id)
    data: dict[str, Any] = {"model_name": run.base_model}
    details = await bridge.base.details()
    data["arch"] = details.family
    if request.client is not None and request.client.host in _THIS_MACHINE:
        # Elsewhere the directory means nothing, and the SDK finds the tokenizer by the model's name.
        data["tokenizer_id"] = details.path
    return {
        "type": "get_info",
        "model_id": run.id,
        "model_data": data,
        "model_name": run.base_model,
        "is_lora": True,
        "lora_rank": run.lora.rank,
    }


def _begun_run(bridge: Bridge, asked: Asked, session: str, run: str, digest: bytes, work: Work) -> Begun:
    """Start what makes a run; it is made once, however often it is asked for.

    Where its session ends first, it is made all the same, and then freed like all the others.
    """
    future = bridge.futures.start(asked, ("model", run), digest, work, session=session)
    return Begun(future, {"model_id": run})


def _digest(asked: Asked) -> bytes:
    return hashlib.blake2b(asked.route.encode() + asked.body, digest_size=16).digest()


def _check_optimizer(optimizer: dict[str, Any] | None) -> None:
    kind = (optimizer or {}).get("type", "adamw")
    if kind != "adamw":
        raise NotSupported(f"the optimizer {kind!r} is not supported by this server: it has adamw")


_THIS_MACHINE = ("127.0.0.1", "::1")

STARTS = {
    "/api/v1/create_model": begin_create_model,
    "/api/v1/load_weights": begin_load_weights,
}
