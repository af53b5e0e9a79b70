"""What the trainer knows of each adapter: who owns it, how far it is, where its state lies.

Owns the life of an adapter: created, taken up from disk, unloaded, saved for a restart, deleted. What a
client's operations do to it is left to `operations`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import structlog

from ..bus.config import Config
from ..bus.errors import CheckpointMismatch, LoractlError
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.layout import StateLayout
from ..bus.messages import AdapterDetails, LoraSpec
from .bank import HostState
from .budgets import Budgets
from .checkpoints import AUTOMATIC, CheckpointRecord, Checkpoints, check_fits
from .copies import device_budget
from .engine import TrainEngine
from .idleness import Idleness
from .publishing import Versions
from .registry import AdapterRecord, Registry, base_signature, exists_on_disk, open_registry
from .resident import Residents
from .spill import SpillStore
from .windows import Event, Window

log = structlog.get_logger()

# Of idle adapters that go to disk in one turn of the loop, for which everyone else waits.
_SINK_BYTES = 64 * 2**20


@dataclass(slots=True)
class Adapter:
    """checkpoint_step: step of the newest checkpoint, -1 when there is none."""

    record: AdapterRecord
    window: Window
    checkpoint_step: int

    @property
    def id(self) -> AdapterId:
        return self.record.adapter

    @property
    def lora(self) -> LoraSpec:
        return self.record.lora

    def happened(self, event: Event, *, step: int | None = None, lane: LaneId | None = None) -> None:
        self.window = self.window.after(event, step=step, lane=lane)


class Adapters:
    """All adapters of this base model."""

    def __init__(
        self,
        engine: TrainEngine,
        residents: Residents,
        registry: Registry,
        checkpoints: Checkpoints,
        versions: Versions,
        *,
        sink_after_s: float,
    ) -> None:
        self.residents = residents
        self.checkpoints = checkpoints
        self.versions = versions
        self._engine = engine
        self._registry = registry
        self._live = {record.adapter: self._found(record) for record in registry.all()}
        self._idle = Idleness(sink_after_s)

    @classmethod
    def open(cls, config: Config, layout: StateLayout, engine: TrainEngine) -> Self:
        """Read what the disk holds. States are read when their adapters are first needed."""
        registry = open_registry(layout, base_signature(engine.details))
        known = [record.adapter for record in registry.all()]
        versions, checkpoints = Versions(layout), Checkpoints(layout)
        versions.scan(known, on_disk(layout))
        for adapter in known:
            checkpoints.sweep(adapter)
        settings = config.trainer
        budgets = Budgets(
            slots=settings.slots,
            device_bytes=settings.device_bytes or device_budget(engine.bank.memory.device),
            host_bytes=settings.host_bytes,
            disk_bytes=settings.disk_bytes,
        )
        residents = Residents(engine.bank, budgets, SpillStore(layout.spill))
        return cls(engine, residents, registry, checkpoints, versions, sink_after_s=settings.sink_after_s)

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

    def create(self, tenant: TenantId, name: str, lora: LoraSpec) -> Adapter:
        """Register a fresh adapter. Whatever is raised leaves neither a name nor memory in use.

        Raises:
            AdapterExists, InvalidName, InvalidRequest, OutOfSlots, StorageFailed
        """
        self._engine.check_lora(lora)
        record = self._registry.draft(tenant, name, lora, now_unix_s=time.time())
        self.residents.admit(record.adapter, lora)
        try:
            self._registry.add(record)
        except BaseException:
            self.residents.remove(record.adapter)
            raise
        self._live[record.adapter] = Adapter(record, Window(), checkpoint_step=-1)
        self._idle.used(record.adapter)
        return self._live[record.adapter]

    def delete(self, adapter: Adapter) -> None:
        """Delete everything but published versions, which the broker retires when no one holds them."""
        self._registry.remove(adapter.id)
        adapter.happened(Event.REMOVED)
        del self._live[adapter.id]
        self._let_go(adapter)

    def take_up(self, adapter: Adapter) -> None:
        """Have the adapter's state among the residents: where it was not, from its newest whole checkpoint.

        Raises:
            OutOfSlots, StorageFailed: it stays where it was.
        """
        self._idle.used(adapter.id)
        if not self.residents.admitted(adapter.id):
            saved = adapter.checkpoint_step >= 0
            self.residents.admit(
                adapter.id, adapter.lora, partial(self._restored, adapter) if saved else None
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

    def unload(self, adapter: Adapter) -> None:
        """Forget what the adapter has in memory; it is as far now as its newest checkpoint."""
        if adapter.window.unsaved:
            log.info("adapter.unsaved_state_dropped", adapter=adapter.id, step=adapter.window.step)
        self._let_go(adapter)
        found = self._found(adapter.record)
        adapter.window, adapter.checkpoint_step = found.window, found.checkpoint_step

    def delete_checkpoint(self, adapter: Adapter, name: str) -> None:
        """Raises CheckpointNotFound, InvalidName, StorageFailed."""
        newest = self.checkpoints.newest(adapter.id)
        self.checkpoints.delete(adapter.id, name)
        found = self._found(adapter.record)
        adapter.checkpoint_step = found.checkpoint_step
        if not self.residents.admitted(adapter.id):
            adapter.window = found.window
        elif newest is not None and newest.name == name:
            adapter.happened(Event.CHECKPOINT_DELETED)

    def save(self, adapter: Adapter, name: str, state: HostState) -> CheckpointRecord:
        """Write a state of the adapter as a checkpoint. Raises StorageFailed."""
        record = self.write_checkpoint(adapter, name, state)
        adapter.checkpoint_step = record.step
        return record

    def write_checkpoint(self, adapter: Adapter, name: str, state: HostState) -> CheckpointRecord:
        """The same, but nobody is told: it touches files only, so any thread may do it."""
        tensors, metadata = self._engine.checkpoint_tensors(state)
        return self.checkpoints.save(
            adapter.id,
            name,
            tensors,
            metadata,
            step=state.step,
            lora=adapter.lora,
            base=adapter.record.base,
        )

    def take_back(self, adapter: Adapter, record: CheckpointRecord) -> None:
        """A checkpoint was written for nothing: remove it. What it took the place of, lies on no disk any more."""
        try:
            self.checkpoints.remove(record)
        finally:
            adapter.checkpoint_step = self._found(adapter.record).checkpoint_step
            adapter.happened(Event.CHECKPOINT_DELETED)

    def save_unsaved(self, adapter: Adapter) -> None:
        """Keep what a restart would lose, under a name that no client can use. Raises StorageFailed."""
        if adapter.window.unsaved:
            self.save(adapter, AUTOMATIC, self.residents.state(adapter.id))
            adapter.happened(Event.SAVED)
            log.info("adapter.saved", adapter=adapter.id, step=adapter.window.step)

    def begin_version(self, adapter: Adapter) -> int:
        """Use up the adapter's next version number. Raises StorageFailed."""
        return self._registry.begin_version(adapter.id)

    def details(self, adapter: Adapter) -> AdapterDetails:
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
        )

    def _let_go(self, adapter: Adapter) -> None:
        self.residents.remove(adapter.id)
        self._idle.gone(adapter.id)

    def _found(self, record: AdapterRecord) -> Adapter:
        newest = self.checkpoints.newest(record.adapter)
        step = newest.step if newest is not None else 0
        return Adapter(record, Window(step=step), newest.step if newest is not None else -1)

    def _restored(self, adapter: Adapter) -> HostState | None:
        """The state at the newest checkpoint that is whole, or None for a fresh one.

        Gradients that it holds are dropped: its lanes are lost, so the client begins the window
        anew and would otherwise gather them twice.
        """
        for record in reversed(self.checkpoints.all(adapter.id)):
            try:
                check_fits(record, adapter.lora, adapter.record.base)
                tensors, metadata = self.checkpoints.load(record)
                state = self._engine.state_from_checkpoint(
                    tensors, metadata, adapter.lora, with_optimizer=True
                )
            except CheckpointMismatch as error:
                log.warning("checkpoint.damaged_one_skipped", adapter=adapter.id, reason=error.message)
                continue
            adapter.window = Window(step=record.step)
            return replace(state, gradients=None, tokens=0)
        adapter.window = Window()
        return None


def on_disk(layout: StateLayout) -> set[AdapterId]:
    """Every directory that is an adapter, of any base model."""
    names = (AdapterId(path.name) for path in layout.adapters.iterdir())
    return {name for name in names if exists_on_disk(layout, name)}
