"""What each operation does that runs by itself: to the engine, to the disk, to the adapter's window.

Every operation is all or nothing: what it raises leaves the adapter as it was. What runs together with
others', forward_backward and optim_step, is `batches`; who may run when is left to `lanes` and `schedule`.
"""

from typing import assert_never

import numpy as np

from ..bus.config import Config
from ..bus.errors import InvalidRequest
from ..bus.ids import LaneId, TenantId
from ..bus.messages import (
    CheckpointSaved,
    ExportWeights,
    Failed,
    ForwardBackward,
    ImportWeights,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    StateLoaded,
    VersionRecord,
    VersionWritten,
    WeightsExported,
)
from .adapters import Adapter, Adapters
from .bank import HostState
from .checkpoints import AUTOMATIC, check_fits
from .engine import TrainEngine
from .publishing import probe_sequence
from .queues import Operation
from .windows import Event


class Operations:
    def __init__(self, config: Config, engine: TrainEngine, adapters: Adapters) -> None:
        # Two tokens are the fewest that can be scored.
        count = max(2, min(config.publish.probe_tokens, engine.details.max_sequence_tokens))
        self._probe = probe_sequence(vocab_size=engine.details.vocab_size, count=count)
        self._most_bytes = config.limits.frame_bytes
        self._engine = engine
        self._adapters = adapters
        self._residents = adapters.residents

    def run(self, tenant: TenantId, operation: Operation) -> Message:
        """Carry out one operation and return its reply.

        Raises:
            LoractlError: the operation changed nothing.
        """
        adapter = self._adapters.owned(tenant, operation.adapter)
        self._adapters.take_up(adapter)
        match operation:
            case SaveCheckpoint():
                return self._save(adapter, operation)
            case LoadCheckpoint():
                return self._load(adapter, operation)
            case LoadVersion():
                return self._load_version(adapter, operation)
            case ImportWeights():
                data = operation.safetensors.tobytes()
                return self._import(adapter, operation.config_json, data, operation.lane)
            case ExportWeights():
                return self._export(adapter)
            case PublishAdapter():
                return self._publish(adapter, held=operation.held)
            case RefuseOperation(code=code, message=message):
                adapter.happened(Event.FAILED, lane=operation.lane)
                return Failed(code=code, message=message, retryable=False, fault="user")
            case ForwardBackward() | OptimStep():
                raise AssertionError(f"a {operation.kind} is for `batches`")
            case _:
                assert_never(operation)

    def _save(self, adapter: Adapter, operation: SaveCheckpoint) -> CheckpointSaved:
        self._adapters.checkpoints.check_new(adapter.id, operation.name, overwrite=operation.overwrite)
        state = self._residents.state(adapter.id)
        record = self._adapters.save(adapter, operation.name, state)
        adapter.happened(Event.SAVED)
        return CheckpointSaved(
            adapter=adapter.id,
            name=record.name,
            step=record.step,
            digest=record.digest,
            size_bytes=record.size_bytes,
        )

    def _load(self, adapter: Adapter, operation: LoadCheckpoint) -> StateLoaded:
        adapter.window.check_replaceable(operation.lane)
        source = self._source(adapter, operation)
        record = self._adapters.checkpoints.find(source.id, operation.name)
        check_fits(record, adapter.lora, adapter.record.base)
        tensors, metadata = self._adapters.checkpoints.load(record)
        state = self._engine.state_from_checkpoint(
            tensors, metadata, adapter.lora, with_optimizer=operation.with_optimizer
        )
        return self._replace(adapter, state, operation.lane)

    def _load_version(self, adapter: Adapter, operation: LoadVersion) -> StateLoaded:
        source = self._source(adapter, operation)
        files = self._adapters.versions.files(source.id, operation.version)
        return self._import(adapter, *files, operation.lane)

    def _source(self, adapter: Adapter, operation: LoadCheckpoint | LoadVersion) -> Adapter:
        """Raises AdapterNotFound: it is not there, or not of whom the operation says."""
        return self._adapters.owned(operation.source_owner or adapter.record.tenant, operation.source)

    def _import(self, adapter: Adapter, config_json: str, safetensors: bytes, lane: LaneId) -> StateLoaded:
        adapter.window.check_replaceable(lane)
        state = self._engine.state_from_peft(config_json, safetensors, adapter.lora)
        return self._replace(adapter, state, lane)

    def _replace(self, adapter: Adapter, state: HostState, lane: LaneId) -> StateLoaded:
        """Give the adapter another state, on disk first: a restart would else lose where it began."""
        self._adapters.save(adapter, AUTOMATIC, state)
        self._residents.replace(adapter.id, state)
        event = Event.REPLACED_MIDWAY if state.gradients is not None else Event.REPLACED
        adapter.happened(event, step=state.step, lane=lane)
        adapter.happened(Event.SAVED)
        return StateLoaded(step=state.step)

    def _export(self, adapter: Adapter) -> WeightsExported:
        slot = self._residents.place(adapter.id)
        config_json, safetensors, _ = self._engine.peft_files(slot)
        if len(safetensors) > self._most_bytes:
            raise InvalidRequest(
                f"these weights take {len(safetensors)} bytes and a message carries at most "
                f"{self._most_bytes} (limits.frame_bytes): publish a version and read its files"
            )
        return WeightsExported(
            config_json=config_json,
            safetensors=np.frombuffer(safetensors, dtype=np.uint8),
            step=adapter.window.step,
        )

    def _publish(self, adapter: Adapter, *, held: bool) -> VersionWritten:
        """Everything that can fail comes before the number, except the disk: numbers may be skipped."""
        slot = self._residents.place(adapter.id)
        config_json, safetensors, modules = self._engine.peft_files(slot)
        logprobs = self._engine.score(slot, np.asarray(self._probe, dtype=np.int64))
        record = VersionRecord(
            adapter=adapter.id,
            tenant=adapter.record.tenant,
            name=adapter.record.name,
            number=self._adapters.begin_version(adapter),
            step=adapter.window.step,
            directory="",
            digest="",
            lora=adapter.lora,
            modules=modules,
            probe_tokens=self._probe,
            probe_logprobs=tuple(float(value) for value in logprobs),
            held=held,
        )
        whole = self._adapters.versions.write(record, config_json, safetensors)
        adapter.happened(Event.PUBLISHED)
        return VersionWritten(record=whole)
