"""Results: polled one by one, as completions of a sampling session, or given up."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ...bus.ids import TenantId
from ...bus.messages import WaitCause
from ..bodies import CancelBody, RetrieveBody, RetrieveManyBody
from ..bridge import Bridge
from ..completions import Completion
from ..progress import Pause, Progress
from ..results import JSON, PROTOBUF, Form, Result
from ..sampling import group_of
from ..wire import pass_json, sample_json
from .reading import BridgeIn, TenantIn, checked, described, json_object

router = APIRouter(prefix="/api/v1", tags=["futures"])

# Between our answer and the client's read timeout, for the way there.
_SLACK_S = 5.0
_SHORTEST_POLL_S = 1.0
_SHORTEST_PART = 0.75


@router.post("/retrieve_future", openapi_extra=described(RetrieveBody))
async def retrieve_future(request: Request, bridge: BridgeIn, tenant: TenantIn) -> Response:
    """Wait for a result. `try_again` says that there is none yet, and what it waits for."""
    body = checked(RetrieveBody, json_object(await request.body()))
    accept = request.headers.get("accept", "")
    found = await result_of(bridge, tenant, body.request_id, _patience_s(request, bridge))
    await bridge.pace.turn()  # many end together
    if isinstance(found, Result):
        return await told_of(
            bridge, tenant, found, lambda: _response(found, accept), _converted(found, accept)
        )
    return JSONResponse(try_again(body.request_id, found))


async def result_of(bridge: Bridge, tenant: TenantId, future: str, patience_s: float) -> Result | Progress:
    """The result, which has room to be told (`told_of`); or, when there is none yet, what it waits for."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while True:
        found = await bridge.futures.wait(tenant, future, max(0.0, until - loop.time()))
        if not isinstance(found, Result) or bridge.unread.enter(tenant, len(found.body)):
            return found
        del found  # perhaps a copy of its own
        if loop.time() >= until:
            progress = Progress()
            progress.waiting = Pause("your other large results are not read yet", "quota")
            return progress
        await bridge.unread.wait(until - loop.time())


async def told_of(
    bridge: Bridge, tenant: TenantId, found: Result, made: Callable[[], Response], work_bytes: int
) -> Response:
    """The response, which leaves its room when it was read. work_bytes: that making it is work on."""
    size_bytes = len(found.body)
    try:
        response = await bridge.apart.when_large(tenant, work_bytes, made)
    except BaseException:
        bridge.unread.leave(tenant, size_bytes)
        raise
    return bridge.unread.told(response, tenant, size_bytes)


def _converted(result: Result, accept: str) -> int:
    """How much has to be written in another form; what is ready costs nothing."""
    return len(result.body) if result.form and PROTOBUF not in accept else 0


def _response(result: Result, accept: str) -> Response:
    """Clients up to 0.24 may read JSON only; later ones say that they read protobuf."""
    if result.form and PROTOBUF not in accept:
        return Response(_AS_JSON[result.form](result.body), media_type=JSON)
    return Response(result.body, media_type=result.media_type)


_AS_JSON: Mapping[Form, Callable[[bytes], bytes]] = {"pass": pass_json, "sample": sample_json}


# As the SDK tells its user: nothing is amiss, the service is busy, or the user has too much under way.
_QUEUE_STATES: Mapping[WaitCause, str] = {
    "own": "active",
    "others": "paused_capacity",
    "quota": "paused_rate_limit",
}


def try_again(request_id: str, progress: Progress) -> dict[str, Any]:
    state = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
    if progress.reason:
        state |= {"queue_state": _QUEUE_STATES[progress.cause], "queue_state_reason": progress.reason}
    return state


@router.post("/retrieve_futures")
async def retrieve_futures(body: RetrieveManyBody, bridge: BridgeIn, tenant: TenantIn) -> dict[str, Any]:
    """Completions of one sampling client's requests, in the order of their ends."""
    sampler = bridge.samplers.owned(tenant, body.target.sampling_session_id)
    await bridge.futures.drop(tenant, body.retrieved_request_ids)
    timeout_s = bridge.config.bridge.long_poll_s
    if body.timeout is not None:
        timeout_s = min(max(body.timeout, 0.0), timeout_s)
    group = group_of(sampler.id, body.target.cloned_sampler_id)
    found, cursor = await bridge.futures.completions(group, body.prev_cursor, timeout_s)
    return {"completions": [_completion(each) for each in found], "cursor": cursor}


@router.post("/cancel_future")
async def cancel_future(body: CancelBody, bridge: BridgeIn, tenant: TenantIn) -> dict[str, str]:
    """Give a sample up. An operation of a training run cannot be taken back and goes on."""
    future = bridge.futures.owned(tenant, body.request_id)
    if future.group:
        bridge.futures.cancel(tenant, body.request_id)
    return {"type": "cancel_future"}


def _completion(each: Completion) -> dict[str, Any]:
    if each.failed:
        return {"state": "failed", "request_id": each.future}
    return {
        "state": "finished",
        "request_id": each.future,
        "response_payload_uncompressed_size": each.size_bytes,
    }


def _patience_s(request: Request, bridge: Bridge) -> float:
    """How long to hold a poll: less than the client waits, which it may say."""
    # Polls that came together do not end together, or all of them would come together again.
    longest = bridge.config.bridge.long_poll_s * random.uniform(_SHORTEST_PART, 1.0)  # noqa: S311  # no secret
    said = request.headers.get("x-stainless-read-timeout", "")
    try:
        return max(_SHORTEST_POLL_S, min(longest, float(said) - _SLACK_S)) if said else longest
    except ValueError:
        return longest
