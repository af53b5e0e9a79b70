"""Sampling sessions: which version of which adapter each one samples from, and for how long it is there.

Kinds: the base model; a sampler checkpoint; a training checkpoint, which is published first, when the
first sample needs it; an unnamed snapshot of a run. A snapshot's version is held for its session:
a run keeps its newest ones, and an inflight sampler moves on with its run's next inflight snapshot.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ..bus.errors import (
    AdapterNotFound,
    CheckpointNotFound,
    InvalidRequest,
    LoractlError,
    NotSupported,
    RequestConflict,
    VersionNotFound,
)
from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    DeleteAdapter,
    DeleteVersion,
    Message,
    PublishAdapter,
    Receipt,
    UnloadAdapter,
    VersionRecord,
)
from .adapters import create_adapter, load_operation
from .asking import ask, is_final
from .base import BaseModel, Bus
from .checkpoints import Checkpoints
from .future_ids import Origin
from .progress import Progress
from .records import RunRecord, SamplerRecord, sampler_id
from .store import Store


@dataclass(frozen=True, slots=True)
class Source:
    """What a sample is drawn from. adapter None is the base model; owner: whose adapter, if another's."""

    adapter: AdapterId | None = None
    version: int | None = None
    owner: TenantId | None = None


class Samplers:
    """kept_snapshots: unnamed ones of a run that stay. clock: seconds since the epoch. origin: of the ids of
    publications."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        base: BaseModel,
        checkpoints: Checkpoints,
        *,
        kept_snapshots: int,
        clock: Callable[[], float],
        origin: Origin,
    ) -> None:
        self._store = store
        self._bus = bus
        self._base = base
        self._checkpoints = checkpoints
        self._kept_snapshots = kept_snapshots
        self._clock = clock
        self._origin = origin
        # Those with a version of their own, which has to go in the end; oldest first.
        self._holding = {each.id: each for each in store.all(SamplerRecord) if _holds(each)}
        self._publishing: dict[str, asyncio.Task[SamplerRecord]] = {}

    def open(
        self,
        tenant: TenantId,
        session: str,
        number: int,
        *,
        base_model: str | None,
        model_path: str | None,
    ) -> SamplerRecord:
        """Open a sampling session on a checkpoint or the base model; opening it again returns the first.

        Raises:
            InvalidRequest, CheckpointNotFound, NotSupported
            RequestConflict: the number was used for another one.
        """
        record = self._new(tenant, session, number, base_model=base_model, model_path=model_path)
        known = self.find(tenant, record.id)
        if known is not None:
            if known.model_path != model_path or known.run:
                raise RequestConflict(
                    f"{record.id} is another sampling session already: take the next number"
                )
            return known
        self._put(record)
        return record

    def find(self, tenant: TenantId, sampler: str) -> SamplerRecord | None:
        record = self._holding.get(sampler) or self._store.find(SamplerRecord, sampler)
        return record if record is not None and record.tenant == tenant else None

    def owned(self, tenant: TenantId, sampler: str) -> SamplerRecord:
        """Raises AdapterNotFound."""
        record = self.find(tenant, sampler)
        if record is None:
            raise AdapterNotFound(f"there is no sampling session {sampler[:200]!r}")
        return record

    def join(self, tenant: TenantId, sampler: str) -> int:
        """Number a further client of a sampling session: 1, 2, … Raises AdapterNotFound."""
        record = self.owned(tenant, sampler)
        self._put(replace(record, clones=record.clones + 1))
        return record.clones + 1

    async def source(self, tenant: TenantId, sampler: str) -> Source:
        """What to sample from; a training checkpoint is published first.

        Raises:
            VersionNotFound: the snapshot went because newer ones of its run were kept, or another tenant's
                checkpoint is not there for everyone any more.
            LoractlError: what kept the checkpoint from being published.
        """
        record = self.owned(tenant, sampler)
        if record.version < 0:
            raise VersionNotFound(
                f"the snapshot behind {sampler} is gone: a run keeps its newest {self._kept_snapshots} unnamed "
                "ones (bridge.ephemeral_samplers); name a checkpoint that has to stay (save_weights_for_sampler)"
            )
        if record.model_path is not None and record.version == 0:
            record = await self._published(record)
        if record.owner is not None:
            self._check_still_public(record)
        return Source(record.adapter, record.version or None, record.owner)

    def _check_still_public(self, record: SamplerRecord) -> None:
        """Raises VersionNotFound: it is not, or is another checkpoint by now."""
        assert record.model_path is not None
        with suppress(CheckpointNotFound):
            found = self._checkpoints.recorded(record.tenant, record.model_path)
            if (found.adapter, found.version) == (record.adapter, record.version):
                return
        raise VersionNotFound(
            f"what sampling session {record.id} sampled from is gone: {record.model_path} was deleted, expired, "
            "or is not public any more"
        )

    async def add_snapshot(
        self, run: RunRecord, number: int, version: VersionRecord, *, inflight: bool, made_by: str
    ) -> SamplerRecord:
        """A sampling session of its own for a version that was published for it. made_by: names the work;
        done again, it finds the first one.

        Raises:
            RequestConflict: the number was used for another one.
        """
        known = self.find(run.tenant, sampler_id(run.parent, number))
        if known is not None and known.made_by == made_by:
            return known
        if known is not None:
            await self._delete_version(run.tenant, run.adapter, version.number)
            raise RequestConflict(f"{known.id} is another sampling session already: take the next number")
        record = SamplerRecord(
            id=sampler_id(run.parent, number),
            tenant=run.tenant,
            parent=run.parent,
            created_unix_s=self._clock(),
            base_model=run.base_model,
            adapter=run.adapter,
            version=version.number,
            run=run.id,
            inflight=inflight,
            made_by=made_by,
        )
        self._put(record)
        await self._thin_out(record)
        return record

    async def let_go(self, record: SamplerRecord) -> None:
        """Free what only this sampler needs; its record stays, to be listed."""
        assert record.adapter is not None
        if record.run:
            await self._delete_version(record.tenant, record.adapter, record.version)
        else:
            # Gone already is fine: an earlier end was cut short.
            with suppress(AdapterNotFound):
                await self._bus.request(DeleteAdapter(adapter=record.adapter), tenant=record.tenant)
        self._put(replace(self.owned(record.tenant, record.id), version=-1))

    def not_let_go(self) -> list[SamplerRecord]:
        """Samplers that still hold a version of their own."""
        return [*self._holding.values()]

    def _new(
        self,
        tenant: TenantId,
        session: str,
        number: int,
        *,
        base_model: str | None,
        model_path: str | None,
    ) -> SamplerRecord:
        record = SamplerRecord(
            id=sampler_id(session, number),
            tenant=tenant,
            parent=session,
            created_unix_s=self._clock(),
            base_model=self._base.name,
            model_path=model_path,
        )
        if model_path is None:
            if base_model is None:
                raise InvalidRequest("say what to sample from: base_model or model_path")
            self._base.check(base_model)
            return record
        checkpoint = self._checkpoints.find(tenant, model_path)
        self._base.check(base_model if base_model is not None else checkpoint.base_model)
        owner = None if checkpoint.tenant == tenant else checkpoint.tenant
        match checkpoint.kind:
            case "sampler":
                return replace(record, adapter=checkpoint.adapter, version=checkpoint.version, owner=owner)
            case "training":
                return record
            case "external":
                raise NotSupported(f"{model_path} was exported for other programs: name a sampler checkpoint")

    async def _published(self, record: SamplerRecord) -> SamplerRecord:
        """Publish a sampler's training checkpoint, once however many samples wait for it."""
        task = self._publishing.get(record.id)
        if task is None:
            task = self._publishing[record.id] = asyncio.create_task(self._publish(record))
            task.add_done_callback(lambda _: self._publishing.pop(record.id, None))
        return await asyncio.shield(task)

    async def _publish(self, record: SamplerRecord) -> SamplerRecord:
        """Load the checkpoint into an adapter of the sampler's own and publish that."""
        assert record.model_path is not None
        checkpoint = self._checkpoints.find(record.tenant, record.model_path)
        # Tried again after a failure, it is other work; after a restart it is the same.
        progress = Progress(origin=self._origin.inside(record.id, str(record.failures)))
        tenant = record.tenant

        async def do(step: str, body: Message) -> Message:
            return await ask(self._bus, body, tenant=tenant, progress=progress, step=step)

        created = await create_adapter(self._bus, tenant, record.id, checkpoint.lora, progress)
        adapter, lane = created.details.adapter, created.lane
        try:
            await do("load", load_operation(checkpoint, tenant, adapter, lane, 1, optimizer=False))
            receipt = await do("publish", PublishAdapter(adapter=adapter, lane=lane, seq=2, held=True))
            await do("unload", UnloadAdapter(adapter=adapter))
        except LoractlError as error:
            if is_final(error):
                await do("delete", DeleteAdapter(adapter=adapter))
                again = self.owned(tenant, record.id)
                self._put(replace(again, failures=again.failures + 1))
            raise
        assert isinstance(receipt, Receipt)
        # As it is by now: others may have joined it.
        record = self.owned(tenant, record.id)
        published = replace(record, adapter=adapter, version=receipt.record.number)
        self._put(published)
        return published

    async def _thin_out(self, newest: SamplerRecord) -> None:
        """Move inflight samplers on, and let the oldest snapshots of the run go."""
        siblings = [each for each in self._holding.values() if each.run == newest.run]
        snapshots = [each for each in siblings if each.id != newest.id]
        replaced = [each for each in snapshots if newest.inflight and each.inflight]
        for each in replaced:
            self._put(replace(each, version=newest.version))
        old = sorted({each.version for each in replaced} - {newest.version})
        kept = [each for each in snapshots if each not in replaced]
        for each in kept[: max(0, len(kept) + 1 - self._kept_snapshots)]:
            self._put(replace(each, version=-1))
            old.append(each.version)
        for version in old:
            assert newest.adapter is not None
            await self._delete_version(newest.tenant, newest.adapter, version)

    async def _delete_version(self, tenant: TenantId, adapter: AdapterId, version: int) -> None:
        await self._bus.request(DeleteVersion(adapter=adapter, version=version), tenant=tenant)

    def _put(self, record: SamplerRecord) -> None:
        self._store.put(record)
        if _holds(record):
            self._holding[record.id] = record
        else:
            self._holding.pop(record.id, None)


def _holds(record: SamplerRecord) -> bool:
    return record.version > 0 and (bool(record.run) or _has_own_adapter(record))


def _has_own_adapter(record: SamplerRecord) -> bool:
    """Whether it published a training checkpoint for itself, see `_publish`."""
    return record.adapter is not None and record.model_path is not None and "/weights/" in record.model_path
