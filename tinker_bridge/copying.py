"""copy_weights: a checkpoint, its owner's or a public one, as a checkpoint of a new run that is not trained.

The copy is made by the trainer: a new adapter loads the checkpoint and saves it again.
"""

from ..bus.errors import InvalidRequest, NotSupported, RequestConflict
from ..bus.ids import TenantId
from ..bus.messages import CheckpointSaved, PublishAdapter, Receipt, SaveCheckpoint
from .bodies import CopyBody
from .bridge import Bridge
from .checkpoints import checked_ttl
from .housekeeping import end_session
from .records import CheckpointRecord, RunRecord, SessionRecord, run_id, tinker_path


async def copy_weights(bridge: Bridge, tenant: TenantId, body: CopyBody) -> str:
    """The copy's tinker path.

    Raises:
        LoractlError: there is no copy then.
    """
    source = bridge.checkpoints.find(tenant, body.source_path)
    if source.kind == "external":
        raise NotSupported(
            f"{source.id} was exported for other programs: copy a training or sampler checkpoint"
        )
    ttl_s = checked_ttl(body.ttl_seconds)
    if body.session_id is not None:
        if body.model_seq_id is None:
            raise InvalidRequest("copy_weights into a session needs model_seq_id, too")
        session = bridge.sessions.active(tenant, body.session_id)
        return await _copied(bridge, session, run_id(session.id, body.model_seq_id), source, ttl_s)
    if body.destination_project_id is None:
        raise InvalidRequest(
            "say where the copy belongs: destination_project_id, or session_id and model_seq_id"
        )
    session = _new_session(bridge, tenant, body.destination_project_id)
    try:
        return await _copied(bridge, session, run_id(session.id, 0), source, ttl_s)
    finally:
        end_session(bridge, session, finished=True, reason="success")


async def _copied(
    bridge: Bridge, session: SessionRecord, run: str, source: CheckpointRecord, ttl_s: int | None
) -> str:
    path = tinker_path(run, source.kind, source.name)
    if (known := bridge.runs.find(session.tenant, run)) is not None:
        # A repeat whose first answer was lost, unless it is a run that is being trained.
        made = bridge.store.owned(CheckpointRecord, session.tenant, path)
        if made is None or known.state == "live":
            raise RequestConflict(f"{run} is another training run already: take the next number")
        return path
    origin = bridge.store.find(RunRecord, source.parent)
    metadata = origin.user_metadata if origin is not None else {}
    record = await bridge.runs.create_from(
        session.tenant, session.id, run, source, metadata, optimizer=source.kind == "training"
    )
    try:
        await _saved(bridge, record, source, ttl_s)
    finally:
        await bridge.runs.let_go(record)
    return path


async def _saved(bridge: Bridge, run: RunRecord, source: CheckpointRecord, ttl_s: int | None) -> None:
    version, size_bytes = 0, source.size_bytes
    if source.kind == "training":
        saved = await bridge.bus.request(
            SaveCheckpoint(adapter=run.adapter, lane=run.lane, seq=1, name=source.name), tenant=run.tenant
        )
        assert isinstance(saved, CheckpointSaved)
        size_bytes = saved.size_bytes
    else:
        receipt = await bridge.bus.request(
            PublishAdapter(adapter=run.adapter, lane=run.lane, seq=1, held=True), tenant=run.tenant
        )
        assert isinstance(receipt, Receipt)
        version = receipt.record.number
    bridge.checkpoints.add(
        run,
        source.kind,
        source.name,
        ttl_s=ttl_s,
        user_metadata=source.user_metadata,
        version=version,
        size_bytes=size_bytes,
    )


def _new_session(bridge: Bridge, tenant: TenantId, project: str) -> SessionRecord:
    """A copy belongs to a project by the session of its run."""
    return bridge.sessions.create(
        tenant,
        tags=["copy_weights"],
        user_metadata={},
        display_name=None,
        project=project,
        sdk_version="",
    )
