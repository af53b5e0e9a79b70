"""What the trainer knows of each adapter: who owns it, how far it is, where its state lies.

Owns the life of an adapter: created, taken up from disk, brought back to a snapshot, unloaded, deleted. What
a client's operations do to it is left to `operations`, when it is snapshotted to `snapshotting`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Self

import structlog

from ..bus.config import Config
from ..bus.errors import AdapterNotFound, LoractlError
from ..bus.ids import NO_ADAPTER, AdapterId, TenantId
from ..bus.layout import StateLayout
from ..bus.messages import AdapterDetails, LoraSpec, Usage
from .adapter import Adapter, Saved
from .bank import HostState
from .base_identity import base_signature
from .budgets import Budgets
from .checkpoints import Checkpoints
from .copies import device_budget
from .disk_quota import DiskQuota
from .engine import TrainEngine
from .idleness import Idleness
from .publishing import Versions
from .registry import AdapterRecord, Registry, exists_on_disk, open_registry
from .resident import Residents
from .saved_states import SavedStates
from .snapshots import SnapshotRecord, Snapshots
from .spill import SpillStore
from .windows import Event, Window

log = structlog.get_logger()

# Of idle adapters that go to disk in one turn of the loop, for which everyone else waits.
_SINK_BYTES = 64 * 2**20


class Adapters:
    """All adapters of this base model."""

    def __init__(
        self,
        engine: TrainEngine,
        residents: Residents,
        registry: Registry,
        checkpoints: Checkpoints,
        snapshots: Snapshots,
        versions: Versions,
        quota: DiskQuota,
        *,
        sink_after_s: float,
    ) -> None:
        self.residents = residents
        self.checkpoints = checkpoints
        self.snapshots = snapshots
        self.states = SavedStates(engine, checkpoints, snapshots)
        self.versions = versions
        self.quota = quota
        self._engine = engine
        self._registry = registry
        self._live = {record.adapter: self._found(record) for record in registry.all()}
        self._idle = Idleness(sink_after_s)

    @classmethod
    def open(cls, config: Config, layout: StateLayout, engine: TrainEngine) -> Self:
        """Read what the disk holds. States are read when their adapters are first needed."""
        registry = open_registry(layout, base_signature(engine.details))
        known = [record.adapter for record in registry.all()]
        settings = config.trainer
        quota = DiskQuota(config.quotas.checkpoint_bytes)
        checkpoints = Checkpoints(layout, keep=settings.keep_checkpoints)
        versions, snapshots = Versions(layout, quota), Snapshots(layout)
        versions.scan(known, on_disk(layout))
        for adapter in known:
            checkpoints.sweep(adapter)
            snapshots.sweep(adapter)
        budgets = Budgets(
            slots=settings.slots,
            device_bytes=settings.device_bytes or device_budget(engine.bank.memory.device),
            host_bytes=settings.host_bytes,
            disk_bytes=settings.disk_bytes,
        )
        residents = Residents(engine.bank, budgets, SpillStore(layout.spill))
        return cls(
            engine,
            residents,
            registry,
            checkpoints,
            snapshots,
            versions,
            quota,
            sink_after_s=settings.sink_after_s,
        )

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> Iterable[Adapter]:
        return list(self._live.values())

    def find(self, adapter: AdapterId) -> Adapter | None:
        """None: it was deleted."""
        return self._live.get(adapter)

    def owned(self, tenant: TenantId, adapter: AdapterId) -> Adapter:
        """Raises AdapterNotFound, the same for an adapter of another tenant as for none."""
        return self._live[self._registry.owned(tenant, adapter).adapter]

    def of(self, tenant: TenantId, name: str | None) -> list[Adapter]:
        """Raises AdapterNotFound: a name was given, and the tenant has no such adapter."""
        return [self._live[record.adapter] for record in self._registry.of(tenant, name)]

    def elsewhere(self) -> dict[TenantId, list[str]]:
        """The names of each tenant's adapters of other base models."""
        return self._registry.elsewhere()

    def state_bytes(self, lora: LoraSpec) -> int:
        """Of the training state of such an adapter, at most."""
        return self._engine.state_bytes(lora)

    def check(self, tenant: TenantId, name: str, lora: LoraSpec) -> int:
        """Look whether such an adapter could be created as far as it goes itself; returns its `state_bytes`.

        Raises:
            AdapterExists, InvalidName, InvalidRequest
        """
        self._engine.check_lora(lora)
        self._registry.draft(tenant, name, lora, now_unix_s=0.0)
        return self.state_bytes(lora)

    def create(self, tenant: TenantId, name: str, lora: LoraSpec, adapter: AdapterId = NO_ADAPTER) -> Adapter:
        """Register a fresh adapter, under an id if one was given it. Whatever is raised leaves neither a name
        nor memory in use.

        Raises:
            AdapterExists, InvalidName, InvalidRequest, OutOfSlots, StorageFailed
        """
        self._engine.check_lora(lora)
        record = self._registry.draft(tenant, name, lora, now_unix_s=time.time(), adapter=adapter)
        self.residents.admit(record.adapter, lora)
        try:
            self._registry.add(record)
        except BaseException:
            self.residents.remove(record.adapter)
            raise
        self._live[record.adapter] = Adapter(record, Window(), checkpoint_step=-1, placed=True)
        self._idle.used(record.adapter)
        return self._live[record.adapter]

    def delete(self, adapter: Adapter) -> None:
        """Delete everything but published versions, which the broker retires when no one holds them."""
        self._registry.remove(adapter.id)
        adapter.happened(Event.REMOVED)
        del self._live[adapter.id]
        self.quota.gone(adapter.id)
        self._let_go(adapter)

    def recover(self, wanted: AdapterId, snapshot: str) -> Adapter:
        """Bring an adapter to where a snapshot left it, gradients and all; "" is its beginning, from its seed.

        Its bytes are read when they are first needed.

        Raises:
            AdapterNotFound
            AnotherBase: it lies on disk, and belongs to another base model.
            CheckpointMismatch: the snapshot is damaged, not there, or of something else; nothing changed.
        """
        self._registry.check_apart(wanted)
        adapter = self._live.get(wanted)
        if adapter is None:
            raise AdapterNotFound(f"there is no adapter {wanted!r}")
        record = self.snapshots.find(wanted, snapshot) if snapshot else None
        if record is not None:
            self.snapshots.check(record, adapter.lora, adapter.record.base)
        self._let_go(adapter)
        self.snapshots.known(wanted, snapshot)
        adapter.is_now(record)
        return adapter

    def close_window(self, adapter: Adapter) -> None:
        """Drop what the adapter gathered since its last step. Raises as `take_up`: nothing changed."""
        if adapter.window.open:
            self.take_up(adapter)
            self.residents.drop_gradients(adapter.id)
        adapter.happened(Event.UNLOADED)

    def take_up(self, adapter: Adapter) -> None:
        """Have the adapter's state among the residents: where it was not, as it lies on disk.

        Raises:
            OutOfSlots, StorageFailed: it stays where it was.
            CheckpointMismatch: what it goes on from was damaged since.
        """
        self._idle.used(adapter.id)
        if not self.residents.admitted(adapter.id):
            saved = adapter.goes_on_from
            self.residents.admit(
                adapter.id, adapter.lora, None if saved is None else partial(self._restored, adapter, saved)
            )

    def sink_idle(self, now: float, busy: Callable[[AdapterId], bool]) -> None:
        """Bring adapters to disk that nothing was asked of for long, a few at a time; as `sink_one`."""
        size_bytes = 0
        while size_bytes < _SINK_BYTES and (sunk_bytes := self.sink_one(now, busy)):
            size_bytes += sunk_bytes

    def sink_one(self, now: float, busy: Callable[[AdapterId], bool]) -> int:
        """Bring the longest idle adapter to disk, with its gradients; it comes back when it is next used.

        busy: something of it waits or runs, so it is no idle one. Returns the most bytes that it took, 0
        when there was none, or it could not go.
        """
        while (idle := self._idle.next(now)) is not None and busy(idle):
            self._idle.used(idle)
        if idle is None:
            return 0
        try:
            self.residents.sink(idle)
        except LoractlError as error:  # the disk, or a host without memory for the way there
            log.warning("adapter.not_sunk", adapter=idle, reason=error.message)
            return 0
        return self.state_bytes(self._live[idle].lora)

    def unloaded(self, adapter: Adapter, record: SnapshotRecord) -> None:
        """Forget what the adapter has in memory, which this snapshot holds."""
        self._let_go(adapter)
        adapter.is_now(record)

    def delete_checkpoint(self, adapter: Adapter, name: str) -> None:
        """Raises CheckpointNotFound, InvalidName, StorageFailed."""
        self.checkpoints.delete(adapter.id, name)
        found = self._found(adapter.record)
        adapter.checkpoint_step = found.checkpoint_step
        if not adapter.placed and not self.residents.admitted(adapter.id):
            adapter.window, adapter.goes_on_from = found.window, found.goes_on_from

    def begin_version(self, adapter: Adapter) -> int:
        """Use up the adapter's next version number. Raises StorageFailed."""
        return self._registry.begin_version(adapter.id)

    def details(self, adapter: Adapter, *, queued: int, waits_for: str, usage: Usage) -> AdapterDetails:
        """queued, waits_for, usage: as `AdapterDetails` has them."""
        return AdapterDetails(
            adapter=adapter.id,
            tenant=adapter.record.tenant,
            name=adapter.record.name,
            lora=adapter.lora,
            step=adapter.window.step,
            version=self.versions.newest(adapter.id),
            checkpoint_step=adapter.checkpoint_step,
            parameters=self._engine.parameters(adapter.lora),
            state_bytes=self._engine.state_bytes(adapter.lora),
            row_bytes=self._engine.row_bytes(adapter.lora),
            place=self.residents.place_of(adapter.id),
            open_window=adapter.window.open,
            created_unix_s=adapter.record.created_unix_s,
            phase="running" if queued else "registered",
            queued=queued,
            waits_for=waits_for,
            usage=usage,
        )

    def _let_go(self, adapter: Adapter) -> None:
        self.residents.remove(adapter.id)
        self._idle.gone(adapter.id)

    def _found(self, record: AdapterRecord) -> Adapter:
        checkpoints, newest = self.checkpoints.all(record.adapter), self.states.newest(record.adapter)
        self.quota.takes(record.tenant, record.adapter, sum(each.size_bytes for each in checkpoints))
        return Adapter(
            record,
            Window(step=newest.step if newest is not None else 0),
            checkpoint_step=checkpoints[-1].step if checkpoints else -1,
            goes_on_from=newest,
        )

    def _restored(self, adapter: Adapter, saved: Saved) -> HostState | None:
        """The state that the adapter goes on from; None for a fresh one.

        Of one that nobody placed, lanes are lost and gradients with them: its client begins the window anew
        and would otherwise gather them twice.
        """
        if adapter.placed:
            return self.states.read(saved, adapter.record)
        found = self.states.newest_whole(adapter.record)
        if found is None:
            adapter.is_now(None)
            return None
        whole, state = found
        adapter.is_now(whole)
        adapter.window, adapter.placed = Window(step=state.step), False
        return replace(state, gradients=None, tokens=0)


def on_disk(layout: StateLayout) -> set[AdapterId]:
    """Every directory that is an adapter, of any base model."""
    names = (AdapterId(path.name) for path in layout.adapters.iterdir())
    return {name for name in names if exists_on_disk(layout, name)}
