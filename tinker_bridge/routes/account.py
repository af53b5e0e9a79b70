"""The caller's own key and what its checkpoints take; and what this server knows of but does not do."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request

from ...bus.errors import NotSupported
from ...bus.ids import TenantId
from ...bus.keys import KeyRecord
from ..body_fields import Body
from ..bridge import Bridge
from .reading import KEYED, BridgeIn, TenantIn

router = APIRouter(prefix="/api/v1", tags=["account"], dependencies=KEYED)


class StorageUsage(Body):
    project_id: str | None
    org_user_urn: str
    user_name: str
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float


class Usage(Body):
    data: list[StorageUsage]


@router.get("/auth/apikey/me")
async def my_key(request: Request, bridge: BridgeIn) -> dict[str, Any]:
    key = _key(request, bridge)
    return {
        # The SDK wants a number: 52 bits, which JSON readers keep exactly.
        "key_id": int(key.key_id[:13], 16),
        "name": key.name,
        "note": f"{key.prefix}…",
        "details": {"org_details": {"name": "loractl"}, "user_details": {"email": key.name}},
    }


@router.delete("/auth/apikey/me")
async def revoke_my_key(request: Request, bridge: BridgeIn) -> dict[str, str]:
    """Revoke the key that this request came with. What its tenant made stays."""
    key = _key(request, bridge)
    await asyncio.to_thread(bridge.keys.revoke, key.name)
    return {"name": key.name}


@router.get("/billing/usage/checkpoints/current")
async def storage_usage(bridge: BridgeIn, tenant: TenantIn, project_id: str | None = None) -> Usage:
    """How many checkpoints the tenant has and what they take, a line for each project."""
    return Usage(
        data=[
            _usage(tenant, project, count, size_bytes)
            for project, count, size_bytes in await bridge.checkpoints.by_project(tenant)
            if project_id is None or project == project_id
        ]
    )


def _refusal(what: str) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise NotSupported(f"{what} is not supported by this server")

    return refuse


for method, path, what in (
    ("POST", "/auth/token", "exchanging an API key for a token"),
    ("POST", "/create_custom_loss", "a loss of one's own computed by the server"),
    ("GET", "/sessions/{session}/trace_export", "exporting a session's trace"),
    (
        "GET",
        "/training_runs/{run}/checkpoints/{segment}/{name}/archive",
        "a checkpoint's archive, which save_weights_external replaces,",
    ),
    ("GET", "/audit", "the audit log"),
    ("GET", "/billing/usage/events", "billing"),
):
    router.add_api_route(path, _refusal(what), methods=[method], include_in_schema=False)


def _key(request: Request, bridge: Bridge) -> KeyRecord:
    key = bridge.keys.describe(request.headers["x-api-key"])
    assert key is not None  # KEYED has just looked it up
    return key


def _usage(tenant: TenantId, project: str | None, count: int, size_bytes: int) -> StorageUsage:
    return StorageUsage(
        project_id=project,
        org_user_urn=tenant,
        user_name=tenant,
        checkpoint_count=count,
        size_bytes=size_bytes,
        size_gigabytes=size_bytes / 1e9,
    )
