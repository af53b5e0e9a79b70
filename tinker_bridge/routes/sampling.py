"""Sampling: sessions on a version or the base model, and the samples drawn in them."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...bus.errors import InvalidRequest, QuotaExceeded
from ..bodies import CreateSamplingSessionBody, SampleBody, SamplingSessionBody
from ..bridge import Bridge
from ..future_rows import Asked
from ..training import digest_of
from ..wire import peek_sample
from .reading import Begun, BridgeIn, TenantIn, asked_of, described, told

router = APIRouter(prefix="/api/v1", tags=["sampling"])

# As the sampler has it.
_MOST_SAMPLES = 1024


@router.post("/create_sampling_session")
async def create_sampling_session(
    body: CreateSamplingSessionBody, bridge: BridgeIn, tenant: TenantIn
) -> dict[str, Any]:
    session = bridge.sessions.active(tenant, body.session_id)
    sampler = bridge.samplers.open(
        tenant,
        session.id,
        body.sampling_session_seq_id,
        base_model=body.base_model,
        model_path=body.model_path,
    )
    return {"type": "create_sampling_session", "sampling_session_id": sampler.id}


@router.post("/join_sampling_session")
async def join_sampling_session(
    body: SamplingSessionBody, bridge: BridgeIn, tenant: TenantIn
) -> dict[str, Any]:
    """Number one more client of a sampling session, so that its requests are told apart."""
    return {
        "type": "join_sampling_session",
        "client_counter": bridge.samplers.join(tenant, body.sampling_session_id),
    }


@router.post("/asample", openapi_extra=described(SampleBody))
async def asample(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Response:
    """Start a sample. 429 asks a client to slow down: the same request is welcome a moment later."""
    asked = await asked_of(request, tenant)
    try:
        begun = await begin_sample(bridge, asked)
    except QuotaExceeded as error:
        return JSONResponse({"detail": error.message}, status_code=429)
    return JSONResponse(await told(bridge, begun))


async def begin_sample(bridge: Bridge, asked: Asked) -> Begun:
    envelope, digest = await bridge.apart.when_large(
        asked.tenant, len(asked.body), lambda: (peek_sample(asked.body), digest_of(asked.body))
    )
    if envelope.sampling_session_id is None or envelope.seq_id is None:
        raise InvalidRequest("a sample needs sampling_session_id and seq_id: create a sampling session first")
    if not 1 <= envelope.num_samples <= _MOST_SAMPLES:
        raise InvalidRequest(f"num_samples is {envelope.num_samples}: it can be 1 to {_MOST_SAMPLES}")
    sampler = bridge.samplers.owned(asked.tenant, envelope.sampling_session_id)
    bridge.sessions.active(asked.tenant, sampler.parent)
    future = bridge.sampling.submit(asked, sampler, envelope.seq_id, envelope, digest)
    # Said again for a repeated request, so they are made from its id.
    sequences = [f"{future.id}.{index}" for index in range(envelope.num_samples)]
    return Begun(future, {"sample_sequence_ids": sequences})


STARTS = {"/api/v1/asample": begin_sample}
