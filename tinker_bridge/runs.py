"""Training runs: made fresh or from a checkpoint, looked up, let go of.

A run is an adapter of its tenant on the bus, under the run's id as its name, and one ordered lane on
it for the client's operations. What the operations do is `training`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from ..bus.errors import (
    AdapterNotFound,
    LaneLost,
    LoractlError,
    RequestConflict,
    SessionEnded,
)
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import (
    AdapterCreated,
    DeleteAdapter,
    LaneOpened,
    LoraSpec,
    OpenLane,
    UnloadAdapter,
)
from .adapters import create_adapter, load_operation
from .asking import ask, is_final
from .base import BaseModel, Bus
from .checkpoints import Checkpoints
from .progress import Progress
from .records import CheckpointRecord, Json, RunRecord
from .store import Store


class Runs:
    """clock: seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        base: BaseModel,
        checkpoints: Checkpoints,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._bus = bus
        self._base = base
        self._checkpoints = checkpoints
        self._clock = clock
        # Those that may take memory: live ones and lost ones.
        self._loaded = {run.id: run for run in store.all(RunRecord) if run.state in ("live", "lost")}
        self._last_request: dict[str, float] = {}

    def find(self, tenant: TenantId, run: str) -> RunRecord | None:
        record = self._loaded.get(run) or self._store.find(RunRecord, run)
        return record if record is not None and record.tenant == tenant else None

    def owned(self, tenant: TenantId, run: str) -> RunRecord:
        """The run, in whatever state. Raises AdapterNotFound."""
        record = self.find(tenant, run)
        if record is None:
            raise AdapterNotFound(f"there is no model {run[:200]!r}")
        return record

    def live(self, tenant: TenantId, run: str) -> RunRecord:
        """The run if it takes operations; marks it as used now.

        Raises:
            AdapterNotFound: the tenant has none with this id.
            LaneLost: what it was is lost.
            SessionEnded: its session ended, and its state was let go of.
        """
        record = self.owned(tenant, run)
        match record.state:
            case "live":
                self._last_request[run] = self._clock()
                return record
            case "lost":
                raise LaneLost(lost_text(run))
            case "unloaded" | "deleted" if not record.parent:
                raise AdapterNotFound(f"model {run} was removed")
            case "unloaded" | "deleted":
                raise SessionEnded(
                    f"the session of model {run} ended: create a training client from one of its checkpoints"
                )

    def last_request_unix_s(self, record: RunRecord) -> float:
        return self._last_request.get(record.id, record.last_request_unix_s)

    async def create(
        self,
        tenant: TenantId,
        session: str,
        run: str,
        base_model: str,
        lora: LoraSpec,
        user_metadata: Mapping[str, Json],
        progress: Progress,
        *,
        made_by: str = "",
    ) -> RunRecord:
        """Make a fresh run. Making it again returns the first. progress: as `create_adapter` has it.

        Raises:
            RequestConflict: another request made it.
            LoractlError: it does not exist then.
        """
        if (known := self._made(tenant, run, made_by)) is not None:
            return known
        self._base.check(base_model)
        created = await create_adapter(self._bus, tenant, run, lora, progress)
        return self._add(tenant, session, run, created, user_metadata, made_by)

    async def create_from(
        self,
        tenant: TenantId,
        session: str,
        run: str,
        source: CheckpointRecord,
        user_metadata: Mapping[str, Json],
        progress: Progress,
        *,
        optimizer: bool,
        made_by: str = "",
    ) -> RunRecord:
        """Make a run of the same geometry as a checkpoint's, and load it, with or without the optimizer.

        Raises:
            RequestConflict: as `create`.
            LoractlError: the run does not exist then.
        """
        if (known := self._made(tenant, run, made_by)) is not None:
            return known
        self._base.check(source.base_model)
        created = await create_adapter(self._bus, tenant, run, source.lora, progress)
        adapter = created.details.adapter
        try:
            operation = load_operation(source, tenant, adapter, created.lane, 1, optimizer=optimizer)
            await ask(self._bus, operation, tenant=tenant, progress=progress, step="load")
            lane = await self.open_lane(tenant, adapter, progress)
        except LoractlError as error:
            if is_final(error):
                deletion = DeleteAdapter(adapter=adapter)
                await ask(self._bus, deletion, tenant=tenant, progress=progress, step="delete")
            raise
        return self._add(tenant, session, run, replace(created, lane=lane), user_metadata, made_by)

    async def open_lane(self, tenant: TenantId, adapter: AdapterId, progress: Progress) -> LaneId:
        """Another ordered lane on a live run. Raises LoractlError."""
        opened = await ask(
            self._bus, OpenLane(adapter=adapter), tenant=tenant, progress=progress, step="open lane"
        )
        assert isinstance(opened, LaneOpened)
        return opened.lane

    def lose(self, run: str) -> None:
        """What was not saved is gone, and the client must be told, not misled."""
        record = self._loaded.get(run)
        if record is not None and record.state == "live":
            self._put(replace(record, state="lost"))

    async def let_go(self, record: RunRecord) -> None:
        """Free the run's memory; without any checkpoint there is nothing to keep of its adapter.

        While a save is under way that is not known yet: a run of a session is then still not let go of.
        """
        saving = self._checkpoints.saving(record.id)
        kept = saving or any(each.kind != "external" for each in self._checkpoints.of_run(record.id))
        request = UnloadAdapter(adapter=record.adapter) if kept else DeleteAdapter(adapter=record.adapter)
        try:
            await self._bus.request(request, tenant=record.tenant)
        except AdapterNotFound:
            kept = saving = False
        if saving and record.parent:
            return
        state: Literal["unloaded", "deleted"] = "unloaded" if kept else "deleted"
        last = self.last_request_unix_s(record)
        self._store.put(replace(record, state=state, last_request_unix_s=last))
        self._loaded.pop(record.id, None)
        self._last_request.pop(record.id, None)

    def not_let_go(self) -> list[RunRecord]:
        """Runs that may still take memory."""
        return [*self._loaded.values()]

    def of_session(self, session: str) -> list[RunRecord]:
        """Oldest first."""
        return self._store.of_parent(RunRecord, session)

    def flush(self, *, late_s: float = 0.0) -> None:
        """Write when each was last used, where what is written is more than late_s behind."""
        late = [
            replace(record, last_request_unix_s=used)
            for run, used in self._last_request.items()
            if (record := self._loaded.get(run)) and used > record.last_request_unix_s + late_s
        ]
        self._store.put(*late)
        self._loaded.update((record.id, record) for record in late)

    def _add(
        self,
        tenant: TenantId,
        session: str,
        run: str,
        created: AdapterCreated,
        user_metadata: Mapping[str, Json],
        made_by: str,
    ) -> RunRecord:
        now = self._clock()
        record = RunRecord(
            id=run,
            tenant=tenant,
            parent=session,
            created_unix_s=now,
            last_request_unix_s=now,
            adapter=created.details.adapter,
            lane=created.lane,
            base_model=self._base.name,
            lora=created.details.lora,
            user_metadata=dict(user_metadata),
            made_by=made_by,
        )
        self._put(record)
        return record

    def _made(self, tenant: TenantId, run: str, made_by: str) -> RunRecord | None:
        known = self.find(tenant, run)
        # A record of before this was written down says nothing.
        if known is not None and known.made_by and known.made_by != made_by:
            raise RequestConflict(f"{run} is another training run already: take the next number")
        return known

    def _put(self, record: RunRecord) -> None:
        self._store.put(record)
        self._loaded[record.id] = record


def lost_text(run: str) -> str:
    return (
        f"after a restart, what model {run} had not saved is gone: create a training client from "
        "its newest checkpoint (create_training_client_from_state_with_optimizer)"
    )
