"""The founding systems' own API: adapters without sessions, rows of chats, samples as text."""

import asyncio
import secrets
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...bus.errors import Aborted, InvalidRequest, NotSupported
from ...bus.ids import TenantId
from ...bus.messages import AdapterList, ListAdapters, LoraSpec, SampleResult
from ..bodies import OptimStepBody
from ..bridge import Bridge
from ..founding.bodies import AddLoraBody, ModelIdBody, Prompt, ResultBody, RowsBody, SampleBody, StepBody
from ..founding.datums import prompt_tokens
from ..founding.facts import adapters_facts, losses_facts, run_facts
from ..founding.names import new_name
from ..founding.samples import prompts_of, sample_of
from ..founding.samples import result_of as text_of
from ..future_rows import Asked
from ..operations import Step
from ..progress import Progress
from ..records import Json, RunRecord
from ..results import JSON, Result
from ..sample_room import weight
from ..training import PUBLICATION
from .futures import result_of, told_of
from .reading import (
    KEYED,
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
from .settings import Capabilities, capabilities
from .training import Started, begin_rows, started

router = APIRouter(tags=["founding systems' API"])

T = TypeVar("T")
Facts = dict[str, Any]


@router.post("/add_lora")
async def add_lora(body: AddLoraBody, bridge: BridgeIn, tenant: TenantIn) -> Facts:
    """Make an adapter, ready to be trained and sampled from. It stays until it is removed."""
    run = new_name(bridge.store.secret, tenant, body.name)
    lora = LoraSpec(
        rank=body.rank,
        alpha=body.alpha,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        train_attn=body.train_attn,
        train_mlp=body.train_mlp,
        train_unembed=body.train_unembed,
    )
    base_model = body.base_model or bridge.base.name
    progress = Progress(patient=False)
    record = await bridge.runs.create(tenant, "", run, base_model, lora, {}, progress)
    if bridge.config.sampler.count > 0:
        bridge.serving.begin(record)
    return run_facts(record)


@router.post("/remove_lora")
async def remove_lora(body: ModelIdBody, bridge: BridgeIn, tenant: TenantIn) -> Facts:
    return await _remove(bridge, tenant, body.model_id)


@router.delete("/adapters/{model_id}")
async def delete_adapter(model_id: str, bridge: BridgeIn, tenant: TenantIn) -> Facts:
    return await _remove(bridge, tenant, model_id)


async def _remove(bridge: Bridge, tenant: TenantId, model_id: str) -> Facts:
    """Saved checkpoints (`/api/v1/save_weights`) stay."""
    record = bridge.runs.live(tenant, model_id)
    bridge.training.forget(record.id)
    bridge.serving.forget(record.id)
    await bridge.runs.let_go(record)
    return {"model_id": record.id, "status": "removed"}


@router.get("/adapters")
async def adapters(bridge: BridgeIn, tenant: TenantIn) -> dict[str, list[Json]]:
    listed = await bridge.bus.request(ListAdapters(), tenant=tenant)
    assert isinstance(listed, AdapterList)
    runs = [run for run in bridge.runs.not_let_go() if run.tenant == tenant]
    return {"adapters": adapters_facts(runs, listed.adapters)}


@router.post("/fwdbwd", openapi_extra=described(RowsBody))
async def fwdbwd(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """Run rows forward and backward; the gradients gather until the next optim_step."""
    return await told(bridge, await begin_rows(bridge, await asked_of(request, tenant)))


@router.post("/optim_step")
async def optim_step(body: StepBody, request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """Apply AdamW to the gathered gradients. Runs behind everything that was sent before."""
    return await told(bridge, await begin_step(bridge, asked_for(request, tenant, body)))


async def begin_step(bridge: Bridge, asked: Asked) -> Begun:
    body = StepBody.model_validate_json(asked.body)
    step = OptimStepBody.model_validate(body.model_dump())
    return started(bridge, asked, body.model_id, body.seq_id, asked.body, Step(step))


async def begin_publication(bridge: Bridge, asked: Asked) -> Begun:
    return Begun(bridge.training.submit_publication(asked))


STARTS = {"/fwdbwd": begin_rows, "/optim_step": begin_step, PUBLICATION: begin_publication}


@router.post(
    "/retrieve_future",
    responses={
        202: {"description": "Not done yet: ask again."},
        500: {"description": "The work failed: category says whether by its sender's doing or by ours."},
    },
)
async def retrieve_future(body: ResultBody, bridge: BridgeIn, tenant: TenantIn) -> Response:
    """The result of fwdbwd or optim_step: 200 completed, 202 pending, 500 failed. Can be read again."""
    patience_s = min(body.timeout, bridge.config.bridge.long_poll_s)
    found = await result_of(bridge, tenant, body.request_id, patience_s)
    answer: Facts = {"request_id": body.request_id}
    if isinstance(found, Progress):
        reason = {"reason": found.reason} if found.reason else {}
        return JSONResponse({**answer, "status": "pending", **reason}, status_code=202)
    return await told_of(bridge, tenant, found, lambda: _told(found, answer), len(found.body))


def _told(found: Result, answer: Facts) -> JSONResponse:
    result = _fields_of(found)
    if found.failed:
        return JSONResponse({**answer, "status": "failed", **result}, status_code=500)
    return JSONResponse({**answer, "status": "completed", "result": result})


def _fields_of(result: Result) -> Facts:
    """Raises NotSupported: it is not JSON."""
    if result.media_type != JSON:
        raise NotSupported("this result was asked for in protobuf: read it at /api/v1/retrieve_future")
    fields: Facts = msgspec.json.decode(result.body)
    return fields


@router.post("/sample", openapi_extra=described(SampleBody))
@router.post("/generate", openapi_extra=described(SampleBody))
@router.post("/api/v1/sample", openapi_extra=described(SampleBody))
async def sample(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Facts:
    """Answer with text. An adapter that was trained since is published first."""
    content = await request.body()
    body = await bridge.apart.when_large(tenant, len(content), lambda: _read(bridge, content))
    return await unless_gone(request, _sampled(bridge, tenant, body, len(content)))


def _read(bridge: Bridge, content: bytes) -> SampleBody:
    fields = json_object(content)
    prompts = fields.get("prompts")
    if isinstance(prompts, list):
        _check_count(bridge, len(prompts))  # before any of them is looked at
    return checked(SampleBody, fields)


async def _sampled(bridge: Bridge, tenant: TenantId, body: SampleBody, size_bytes: int) -> Facts:
    bridge.base.check(body.base_model)
    prompts = prompts_of(body)
    sequences = len(prompts) * body.sampling_params.num_samples
    _check_count(bridge, sequences)
    weight_bytes = weight(size_bytes, sequences)
    bridge.sampling.check_room(tenant, weight_bytes)
    run = None if body.model_id is None else bridge.runs.live(tenant, body.model_id)
    with bridge.sampling.room.taken(tenant, len(prompts), weight_bytes=weight_bytes):
        return await _answered(bridge, tenant, body, prompts, run)


async def _answered(
    bridge: Bridge, tenant: TenantId, body: SampleBody, prompts: list[Prompt], run: RunRecord | None
) -> Facts:
    works = [partial(prompt_tokens, prompt=prompt, raw=body.raw) for prompt in prompts]
    tokens = await bridge.tokenizer.each(tenant, works)
    if run is not None:
        await bridge.serving.up_to_date(run)
    adapter = None if run is None else run.adapter
    samples = [sample_of(adapter, each, body.sampling_params) for each in tokens]
    results = await asyncio.gather(*(bridge.bus.request(each, tenant=tenant) for each in samples))
    answers = [
        text_of(each, result)
        for each, result in zip(samples, results, strict=True)
        if isinstance(result, SampleResult)
    ]
    texts = [text for result in results if isinstance(result, SampleResult) for text in result.texts]
    return {"model_id": body.model_id, "base_model": bridge.base.name, "texts": texts, "results": answers}


def _check_count(bridge: Bridge, count: int) -> None:
    most = bridge.config.bridge.pending_samples
    if count > most:
        raise InvalidRequest(f"{count} samples at once: at most {most} (bridge.pending_samples)")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and give it up when the client hangs up: nobody would read its outcome."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Aborted("the client hung up")
        return await working
    finally:
        working.cancel()
        gone.cancel()
        # An error of theirs has this frame in its traceback: with them in it, body and all would stay.
        del working, gone


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # the body was read before


@router.get("/loss_functions", dependencies=KEYED)
async def loss_functions() -> dict[str, list[Json]]:
    """The losses, their inputs, and their settings (`loss_fn_config`) with defaults."""
    return {"loss_functions": losses_facts()}


@router.get("/get_server_capabilities", dependencies=KEYED)
async def get_server_capabilities(bridge: BridgeIn) -> Capabilities:
    return await capabilities(bridge.base, sampleable=bridge.config.sampler.count > 0)
