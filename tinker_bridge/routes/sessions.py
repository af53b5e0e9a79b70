"""Sessions: begun, kept alive, finished."""

import structlog
from fastapi import APIRouter

from ..bodies import CreateSessionBody, FinishBody, HeartbeatBody
from ..body_fields import Body
from ..housekeeping import end_session
from ..sdk_versions import version_warning
from .reading import BridgeIn, TenantIn

router = APIRouter(prefix="/api/v1", tags=["sessions"])
log = structlog.get_logger()


class SessionCreated(Body):
    type: str = "create_session"
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None


@router.post("/create_session")
async def create_session(body: CreateSessionBody, bridge: BridgeIn, tenant: TenantIn) -> SessionCreated:
    session = bridge.sessions.create(
        tenant,
        tags=body.tags,
        user_metadata=body.user_metadata or {},
        display_name=body.display_name,
        project=body.project_id,
        sdk_version=body.sdk_version,
    )
    log.info("session.created", session=session.id, tenant=tenant, sdk_version=body.sdk_version)
    return SessionCreated(session_id=session.id, warning_message=version_warning(body.sdk_version))


@router.post("/session_heartbeat")
async def session_heartbeat(body: HeartbeatBody, bridge: BridgeIn, tenant: TenantIn) -> dict[str, str]:
    bridge.sessions.active(tenant, body.session_id)
    return {"type": "session_heartbeat"}


@router.post("/sessions/{session}/finish")
async def finish_session(
    session: str, body: FinishBody, bridge: BridgeIn, tenant: TenantIn
) -> dict[str, str]:
    """The first word stands: finishing again changes nothing. Memory is freed a moment later."""
    record = bridge.sessions.owned(tenant, session)
    end_session(bridge, record, finished=True, reason=body.reason.type, detail=body.detail or "")
    return {"type": "session_finish"}
