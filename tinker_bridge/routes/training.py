"""Training runs: made, trained, saved, loaded. Every route here answers at once with a request id."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request

from ...bus.errors import InvalidRequest, LoractlError, NotSupported
from ...bus.ids import TenantId
from ...bus.messages import Message
from ..adapters import lora_spec
from ..bodies import (
    CreateModelBody,
    LoadWeightsBody,
    ModelBody,
    OptimStepBody,
    SaveForSamplerBody,
    SaveWeightsBody,
)
from ..bridge import Bridge
from ..founding.bodies import RowsBody
from ..founding.passes import rows_call
from ..futures import Progress, Result, Work, json_result
from ..operations import Load, Pass, Save, SaveForSampler, Step, loaded_result
from ..records import RunRecord, run_id
from ..training import Call, Operation, Place
from ..wire import peek_forward_backward
from .reading import BodyT, BridgeIn, TenantIn, checked, described, json_object, numbered

router = APIRouter(prefix="/api/v1", tags=["training"])

_PROTOBUF_BODY = {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}}
_PASS_BODY = {"requestBody": {"required": True, "content": _PROTOBUF_BODY}}
_ROWS_BODY = described(RowsBody)["requestBody"]["content"]
_PASS_OR_ROWS_BODY = {"requestBody": {"required": True, "content": {**_PROTOBUF_BODY, **_ROWS_BODY}}}

Started = dict[str, Any]


@router.post("/create_model")
async def create_model(body: CreateModelBody, bridge: BridgeIn, tenant: TenantIn) -> Started:
    session = bridge.sessions.active(tenant, body.session_id)
    run = run_id(session.id, body.model_seq_id)

    async def work(progress: Progress) -> Result:
        _check_optimizer(body.optimizer_config)
        if body.lora_config is None:
            raise NotSupported("full fine-tuning is not supported by this server: give a lora_config")
        lora = lora_spec(**body.lora_config.model_dump())
        record = await bridge.runs.create(
            tenant, session.id, run, body.base_model, lora, body.user_metadata or {}, progress
        )
        return json_result({"type": "create_model", "model_id": record.id})

    return _begun(bridge, tenant, run, body.model_dump_json().encode(), work)


@router.post("/load_weights", openapi_extra=described(LoadWeightsBody))
async def load_weights(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """Into a run under way (model_id, seq_id), or into a new one (session_id, model_seq_id)."""
    content = await request.body()
    fields = json_object(content)
    if fields.get("model_id") is not None:
        return submitted(
            bridge, tenant, request, content, LoadWeightsBody, lambda body: Load(body, bridge.checkpoints)
        )
    body = checked(LoadWeightsBody, fields)
    if body.session_id is None or body.model_seq_id is None:
        raise InvalidRequest("load_weights needs model_id and seq_id, or session_id and model_seq_id")
    session = bridge.sessions.active(tenant, body.session_id)
    run = run_id(session.id, body.model_seq_id)

    async def work(progress: Progress) -> Result:
        _check_optimizer(body.optimizer_config)
        source = bridge.checkpoints.find(tenant, body.path)
        bridge.base.check(body.base_model)
        record = await bridge.runs.create_from(
            tenant, session.id, run, source, body.user_metadata or {}, progress, optimizer=body.optimizer
        )
        return loaded_result(record, body.path)

    return _begun(bridge, tenant, run, content, work)


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


@router.post("/forward_backward", openapi_extra=_PASS_OR_ROWS_BODY)
async def forward_backward(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """One chunk of datums: protobuf, or JSON as clients up to 0.24 send it, or rows (`data`, see /fwdbwd)."""
    content = await request.body()
    if request.headers.get("content-type", "").startswith("application/json") and _has_rows(content):
        return await begin_rows(bridge, tenant, request.url.path, content, json_object(content))
    return _begin_pass(request, bridge, tenant, content, forward_only=False)


@router.post("/forward", openapi_extra=_PASS_BODY)
async def forward(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """A pass without gradients, as clients up to 0.24 ask for it."""
    return _begin_pass(request, bridge, tenant, await request.body(), forward_only=True)


class _Rows(msgspec.Struct):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _has_rows(content: bytes) -> bool:
    try:
        return msgspec.json.decode(content, type=_Rows).data is not msgspec.UNSET
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False  # compressed, or damaged: its reader says so


async def begin_rows(
    bridge: Bridge, tenant: TenantId, path: str, content: bytes, fields: dict[str, Any]
) -> Started:
    """Start a pass over rows, which become tokens first; only a numbered one that is wrong is started, too.

    Raises:
        LoractlError: the body cannot be used, or there is no such run.
    """
    model, seq = numbered(fields)
    bridge.runs.owned(tenant, model)
    call: Call
    try:
        call = await rows_call(bridge.tokenizer, checked(RowsBody, fields))
    except LoractlError as error:
        if seq is None:
            raise
        call = Refused(error)
    return started(bridge, tenant, model, seq, path, content, call)


def _begin_pass(
    request: Request, bridge: Bridge, tenant: TenantId, content: bytes, *, forward_only: bool
) -> Started:
    kind = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding")
    envelope = peek_forward_backward(content, kind, encoding)
    call = Pass(content, kind, encoding, forward_only=forward_only)
    return started(bridge, tenant, envelope.model_id, envelope.seq_id, request.url.path, content, call)


@router.post("/optim_step", openapi_extra=described(OptimStepBody))
async def optim_step(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    return submitted(bridge, tenant, request, await request.body(), OptimStepBody, Step)


@router.post("/save_weights", openapi_extra=described(SaveWeightsBody))
async def save_weights(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    content = await request.body()
    return submitted(
        bridge, tenant, request, content, SaveWeightsBody, lambda body: Save(body, bridge.checkpoints)
    )


@router.post("/save_weights_for_sampler", openapi_extra=described(SaveForSamplerBody))
async def save_weights_for_sampler(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    content = await request.body()
    return submitted(
        bridge,
        tenant,
        request,
        content,
        SaveForSamplerBody,
        lambda body: SaveForSampler(body, bridge.checkpoints, bridge.samplers),
        # The SDK takes another number for an unnamed sampler whenever it sends the same save again.
        changing="sampling_session_seq_id",
    )


def submitted(
    bridge: Bridge,
    tenant: TenantId,
    request: Request,
    content: bytes,
    kind: type[BodyT],
    made: Callable[[BodyT], Call],
    *,
    changing: str | None = None,
) -> Started:
    """Start a numbered JSON operation; a body that is wrong uses up its number and fails in its turn.

    changing: a field that may be another when the same operation is sent again; the first one's stands.

    Raises:
        LoractlError: not even the number can be read, or there is no such run.
    """
    fields = json_object(content)
    model, seq = numbered(fields)
    try:
        call = made(checked(kind, fields))
    except LoractlError as error:
        call = Refused(error)
    if changing in fields:
        content = json.dumps({name: fields[name] for name in fields if name != changing}).encode()
    return started(bridge, tenant, model, seq, request.url.path, content, call)


def started(
    bridge: Bridge, tenant: TenantId, model: str, seq: int | None, path: str, content: bytes, call: Call
) -> Started:
    future = bridge.training.submit(tenant, model, seq, path.encode() + content, call)
    return {"request_id": future.id, "model_id": model}


class Refused:
    """An operation whose body is wrong."""

    def __init__(self, error: LoractlError) -> None:
        self._error = error

    def build(self, _run: RunRecord, _place: Place) -> Operation:
        raise self._error

    async def finish(self, _answer: Message) -> Result:
        raise AssertionError("a refused operation is answered with its failure")

    def close(self) -> None:
        pass


def _begun(bridge: Bridge, tenant: TenantId, run: str, content: bytes, work: Work) -> Started:
    """Start what makes a run; it is made once, however often it is asked for.

    Where its session ends first, it is made all the same, and then freed like all the others.
    """
    digest = hashlib.blake2b(content, digest_size=16).digest()
    future = bridge.futures.start(tenant, ("model", run), digest, work)
    return {"request_id": future.id, "model_id": run}


def _check_optimizer(optimizer: dict[str, Any] | None) -> None:
    kind = (optimizer or {}).get("type", "adamw")
    if kind != "adamw":
        raise NotSupported(f"the optimizer {kind!r} is not supported by this server: it has adamw")


_THIS_MACHINE = ("127.0.0.1", "::1")
