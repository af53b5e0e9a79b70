"""copy_weights: a checkpoint, its owner's or a public one, as a checkpoint of a new run that is not trained.

The copy is made by the trainer: a new adapter loads the checkpoint and saves it again.
"""

import uuid

from ..bus.errors import InvalidRequest, LoractlError, NotSupported
from ..bus.ids import TenantId
from ..bus.messages import CheckpointSaved, PublishAdapter, Receipt, SaveCheckpoint
from .asking import ask, is_final
from .bodies import CopyBody
from .bridge import Bridge
from .checkpoints import checked_ttl
from .housekeeping import end_session
from .progress import Progress
from .records import CheckpointRecord, RunRecord, SessionRecord, run_id, tinker_path


async def copy_weights(
    bridge: Bridge, tenant: TenantId, body: CopyBody, progress: Progress, made_by: str
) -> str:
    """The copy's tinker path; done again, that of the first. made_by: names the request.

    Raises:
        LoractlError: there is no copy then.
    """
    source = checked_source(bridge, tenant, body)
    ttl_s = checked_ttl(body.ttl_seconds)
    if body.session_id is not None:
        if body.model_seq_id is None:
            raise InvalidRequest("copy_weights into a session needs model_seq_id, too")
        session = bridge.sessions.active(tenant, body.session_id)
        run = run_id(session.id, body.model_seq_id)
        return await _copied(bridge, session, run, source, ttl_s, progress, made_by)
    if body.destination_project_id is None:
        raise InvalidRequest(
            "say where the copy belongs: destination_project_id, or session_id and model_seq_id"
        )
    session = _new_session(bridge, tenant, body.destination_project_id, progress)
    try:
        path = await _copied(bridge, session, run_id(session.id, 0), source, ttl_s, progress, made_by)
    except LoractlError as error:
        if is_final(error):
            end_session(bridge, session, finished=True, reason="success")
        raise
    end_session(bridge, session, finished=True, reason="success")
    return path


def checked_source(bridge: Bridge, tenant: TenantId, body: CopyBody) -> CheckpointRecord:
    """Raises CheckpointNotFound, NotSupported."""
    source = bridge.checkpoints.find(tenant, body.source_path)
    if source.kind == "external":
        raise NotSupported(
            f"{source.id} was exported for other programs: copy a training or sampler checkpoint"
        )
    return source


async def _copied(
    bridge: Bridge,
    session: SessionRecord,
    run: str,
    source: CheckpointRecord,
    ttl_s: int | None,
    progress: Progress,
    made_by: str,
) -> str:
    origin = bridge.store.owned(RunRecord, session.tenant, source.parent)
    metadata = origin.user_metadata if origin is not None else {}
    optimizer = source.kind == "training"
    record = await bridge.runs.create_from(
        session.tenant, session.id, run, source, metadata, progress, optimizer=optimizer, made_by=made_by
    )
    try:
        await _saved(bridge, record, source, ttl_s, progress, made_by)
    except LoractlError as error:
        if is_final(error):
            await bridge.runs.let_go(record)
        raise
    await bridge.runs.let_go(record)
    return tinker_path(run, source.kind, source.name)


async def _saved(
    bridge: Bridge,
    run: RunRecord,
    source: CheckpointRecord,
    ttl_s: int | None,
    progress: Progress,
    made_by: str,
) -> None:
    version, size_bytes = 0, source.size_bytes
    body: SaveCheckpoint | PublishAdapter
    if source.kind == "training":
        body = SaveCheckpoint(adapter=run.adapter, lane=run.lane, seq=1, name=source.name)
    else:
        body = PublishAdapter(adapter=run.adapter, lane=run.lane, seq=1, held=True)
    saved = await ask(bridge.bus, body, tenant=run.tenant, progress=progress, step="save")
    if isinstance(saved, CheckpointSaved):
        size_bytes = saved.size_bytes
    else:
        assert isinstance(saved, Receipt)
        version = saved.record.number
    bridge.checkpoints.add(
        run,
        source.kind,
        source.name,
        ttl_s=ttl_s,
        user_metadata=source.user_metadata,
        version=version,
        size_bytes=size_bytes,
        made_by=made_by,
    )


def _new_session(bridge: Bridge, tenant: TenantId, project: str, progress: Progress) -> SessionRecord:
    """A copy belongs to a project by the session of its run."""
    return bridge.sessions.create(
        tenant,
        tags=["copy_weights"],
        user_metadata={},
        display_name=None,
        project=project,
        sdk_version="",
        id_=str(uuid.UUID(progress.origin.token("session"))),
    )
