"""Training runs: trained, saved. Every route here answers at once with a request id.

A `begin_…` starts what a request asks for, and starts it again after a restart (see `run_again`).
"""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request

from ...bus.errors import LoractlError
from ..apart import INLINE_BYTES
from ..bodies import (
    OptimStepBody,
    SaveForSamplerBody,
    SaveWeightsBody,
)
from ..bridge import Bridge
from ..calls import Call, Refused
from ..founding.bodies import RowsBody
from ..founding.passes import rows_call
from ..future_rows import Asked
from ..operations import Pass, Save, SaveForSampler, Step
from ..training import digest_of
from ..wire import Envelope, peek_forward_backward
from .reading import (
    Begun,
    BodyT,
    BridgeIn,
    TenantIn,
    asked_of,
    checked,
    described,
    json_object,
    numbered,
    told,
)

router = APIRouter(prefix="/api/v1", tags=["training"])

_PROTOBUF_BODY = {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}}
_PASS_BODY = {"requestBody": {"required": True, "content": _PROTOBUF_BODY}}
_ROWS_BODY = described(RowsBody)["requestBody"]["content"]
_PASS_OR_ROWS_BODY = {"requestBody": {"required": True, "content": {**_PROTOBUF_BODY, **_ROWS_BODY}}}

Started = dict[str, Any]
PASS_PATHS = ("/api/v1/forward_backward", "/api/v1/forward")


@router.post("/forward_backward", openapi_extra=_PASS_OR_ROWS_BODY)
async def forward_backward(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """One chunk of datums: protobuf, or JSON as clients up to 0.24 send it, or rows (`data`, see /fwdbwd)."""
    return await told(bridge, await begin_forward_backward(bridge, await asked_of(request, tenant)))


async def begin_forward_backward(bridge: Bridge, asked: Asked) -> Begun:
    if (
        asked.content_type.startswith("application/json")
        and _peeked_rows(asked.body).data is not msgspec.UNSET
    ):
        return await begin_rows(bridge, asked)
    return await _begin_pass(bridge, asked, forward_only=False)


@router.post("/forward", openapi_extra=_PASS_BODY)
async def forward(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    """A pass without gradients, as clients up to 0.24 ask for it."""
    return await told(bridge, await begin_forward(bridge, await asked_of(request, tenant)))


async def begin_forward(bridge: Bridge, asked: Asked) -> Begun:
    return await _begin_pass(bridge, asked, forward_only=True)


class _Rows(msgspec.Struct):
    """What is read of a body without making anything of the rest."""

    model_id: Any = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _peeked_rows(content: bytes) -> _Rows:
    try:
        return msgspec.json.decode(content, type=_Rows)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Rows()  # compressed, or damaged: its reader says so


async def begin_rows(bridge: Bridge, asked: Asked) -> Begun:
    """Start a pass over rows, which become tokens first; only a numbered one that is wrong is started, too.

    Raises:
        LoractlError: the body cannot be used, or there is no such run.
    """
    if len(asked.body) > INLINE_BYTES:
        named = _peeked_rows(asked.body).model_id
        if isinstance(named, str):
            bridge.runs.owned(asked.tenant, named)
        fields = await bridge.apart.run(asked.tenant, partial(json_object, asked.body))
    else:
        fields = json_object(asked.body)
    model, seq = numbered(fields)
    bridge.runs.owned(asked.tenant, model)
    call: Call
    size_bytes = 0
    try:
        call = rows = await rows_call(bridge.tokenizer, asked.tenant, checked(RowsBody, fields))
        size_bytes = rows.size_bytes
    except LoractlError as error:
        if seq is None:
            raise
        call = Refused(error)
    return started(bridge, asked, model, seq, asked.body, call, size_bytes)


async def _begin_pass(bridge: Bridge, asked: Asked, *, forward_only: bool) -> Begun:
    envelope, digest = await _peeked(bridge, asked)
    call = Pass(asked, envelope, forward_only=forward_only, pace=bridge.pace, apart=bridge.apart)
    future = bridge.training.submit(
        asked,
        envelope.model_id,
        envelope.seq_id,
        call,
        digest,
        size_bytes=envelope.plain_bytes,
    )
    return Begun(future, {"model_id": envelope.model_id})


async def _peeked(bridge: Bridge, asked: Asked) -> tuple[Envelope, bytes]:
    """Whose it is, and its digest. What is compressed may be a thousand times larger, and waits its turn."""

    def peek() -> tuple[Envelope, bytes]:
        envelope = peek_forward_backward(asked.body, asked.content_type, asked.content_encoding)
        return envelope, digest_of(asked.route.encode(), asked.body)

    if asked.content_encoding is not None:
        return await bridge.apart.run(asked.tenant, peek)
    return await asyncio.to_thread(peek) if len(asked.body) > INLINE_BYTES else peek()


@router.post("/optim_step", openapi_extra=described(OptimStepBody))
async def optim_step(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    return await told(bridge, await begin_optim_step(bridge, await asked_of(request, tenant)))


async def begin_optim_step(bridge: Bridge, asked: Asked) -> Begun:
    return submitted(bridge, asked, OptimStepBody, Step)


@router.post("/save_weights", openapi_extra=described(SaveWeightsBody))
async def save_weights(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    return await told(bridge, await begin_save(bridge, await asked_of(request, tenant)))


async def begin_save(bridge: Bridge, asked: Asked) -> Begun:
    return submitted(bridge, asked, SaveWeightsBody, lambda body: Save(body, bridge.checkpoints))


@router.post("/save_weights_for_sampler", openapi_extra=described(SaveForSamplerBody))
async def save_weights_for_sampler(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Started:
    return await told(bridge, await begin_save_for_sampler(bridge, await asked_of(request, tenant)))


async def begin_save_for_sampler(bridge: Bridge, asked: Asked) -> Begun:
    return submitted(
        bridge,
        asked,
        SaveForSamplerBody,
        lambda body: SaveForSampler(body, bridge.checkpoints, bridge.samplers),
        # The SDK takes another number for an unnamed sampler whenever it sends the same save again.
        changing="sampling_session_seq_id",
    )


def submitted(
    bridge: Bridge,
    asked: Asked,
    kind: type[BodyT],
    made: Callable[[BodyT], Call],
    *,
    changing: str | None = None,
) -> Begun:
    """Start a numbered JSON operation; a body that is wrong uses up its number and fails in its turn.

    changing: a field that may be another when the same operation is sent again; the first one's stands.

    Raises:
        LoractlError: not even the number can be read, or there is no such run.
    """
    fields = json_object(asked.body)
    model, seq = numbered(fields)
    try:
        call = made(checked(kind, fields))
    except LoractlError as error:
        call = Refused(error)
    content = asked.body
    if changing in fields:
        content = json.dumps({name: fields[name] for name in fields if name != changing}).encode()
    return started(bridge, asked, model, seq, content, call)


def started(
    bridge: Bridge,
    asked: Asked,
    model: str,
    seq: int | None,
    content: bytes,
    call: Call,
    size_bytes: int = 0,
) -> Begun:
    """size_bytes: what it takes, where that is more than its content."""
    digest = digest_of(asked.route.encode(), content)
    future = bridge.training.submit(asked, model, seq, call, digest, size_bytes=size_bytes)
    return Begun(future, {"model_id": model})


STARTS = {
    "/api/v1/forward_backward": begin_forward_backward,
    "/api/v1/forward": begin_forward,
    "/api/v1/optim_step": begin_optim_step,
    "/api/v1/save_weights": begin_save,
    "/api/v1/save_weights_for_sampler": begin_save_for_sampler,
}
