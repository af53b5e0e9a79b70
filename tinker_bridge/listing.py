"""Runs and checkpoints as the API lists them, and who may read which.

A run is its owner's; one with a public checkpoint can be read by everyone, and shows others no more
than its public checkpoints and what it takes to use them.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from ..bus.errors import AdapterNotFound
from ..bus.ids import TenantId
from .body_fields import Body
from .bridge import Bridge
from .records import CheckpointKind, CheckpointRecord, Json, RunRecord
from .store import ALL, of_project


class Checkpoint(Body):
    checkpoint_id: str
    checkpoint_type: CheckpointKind
    time: datetime
    tinker_path: str
    size_bytes: int | None
    public: bool
    user_metadata: dict[str, str] | None
    expires_at: datetime | None


class TrainingRun(Body):
    """corrupted: what it had not saved was lost in a restart of the trainer.

    For others than its owner: last_request_time is when its newest public checkpoint was made, and the
    rest of what its owner does is left out (model_owner is empty then).
    """

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool = True
    corrupted: bool
    lora_rank: int
    last_request_time: datetime
    last_checkpoint: Checkpoint | None
    last_sampler_checkpoint: Checkpoint | None
    user_metadata: dict[str, str] | None


class Cursor(Body):
    offset: int
    limit: int
    total_count: int


def readable_run(bridge: Bridge, tenant: TenantId, run: str) -> tuple[RunRecord, list[CheckpointRecord]]:
    """A run and its checkpoints, oldest first, as far as this tenant may see them.

    Raises:
        AdapterNotFound: there is none, or none of it is public.
    """
    record = bridge.runs.find(tenant, run) or bridge.store.find(RunRecord, run)
    checkpoints = bridge.checkpoints.listed_of_run(run)
    if record is not None and record.tenant != tenant:
        checkpoints = [each for each in checkpoints if each.public]
    if record is None or (record.tenant != tenant and not checkpoints):
        raise AdapterNotFound(f"there is no training run {run[:200]!r}")
    return record, checkpoints


def runs_page(
    bridge: Bridge, tenant: TenantId, project: str | None, *, limit: int, offset: int
) -> tuple[list[RunRecord], int]:
    """A page of the tenant's runs, newest first, and how many there are. project: None for all."""
    only = ALL if project is None else of_project(tenant, project)
    page = bridge.store.page(RunRecord, tenant, only, limit=limit, offset=offset)
    return page, bridge.store.count(RunRecord, tenant, only)


def run_shown(
    bridge: Bridge, tenant: TenantId, record: RunRecord, checkpoints: Sequence[CheckpointRecord]
) -> TrainingRun:
    """checkpoints: as far as this tenant may see them."""
    shown = TrainingRun(
        training_run_id=record.id,
        base_model=record.base_model,
        model_owner=record.tenant,
        corrupted=record.state == "lost",
        lora_rank=record.lora.rank,
        last_request_time=moment(bridge.runs.last_request_unix_s(record)),
        last_checkpoint=_last(checkpoints, "training"),
        last_sampler_checkpoint=_last(checkpoints, "sampler"),
        user_metadata=texts(record.user_metadata),
    )
    if record.tenant == tenant:
        return shown
    newest = max(each.created_unix_s for each in checkpoints)
    public = {"model_owner": "", "corrupted": False, "user_metadata": None}
    return shown.model_copy(update={**public, "last_request_time": moment(newest)})


def checkpoint_shown(record: CheckpointRecord) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=record.checkpoint_id,
        checkpoint_type=record.kind,
        time=moment(record.created_unix_s),
        tinker_path=record.id,
        size_bytes=record.size_bytes or None,
        public=record.public,
        user_metadata=texts(record.user_metadata),
        expires_at=None if record.expires_unix_s is None else moment(record.expires_unix_s),
    )


def texts(metadata: Mapping[str, Json]) -> dict[str, str] | None:
    """Metadata as the API shows it: strings only, what is none as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
    } or None


def moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _last(checkpoints: Sequence[CheckpointRecord], kind: CheckpointKind) -> Checkpoint | None:
    found = [each for each in checkpoints if each.kind == kind]
    return checkpoint_shown(found[-1]) if found else None
