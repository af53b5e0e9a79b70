"""What each operation does that runs by itself: to the engine, to the disk, to the adapter's window.

Every operation is all or nothing: what it raises leaves the adapter as it was. What runs together with
others', forward_backward and optim_step, is `batches`; who may run when is left to `lanes` and `schedule`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np
from torch import Tensor

from ..bus.config import Config
from ..bus.errors import InvalidRequest, LoractlError
from ..bus.ids import LaneId, RequestId, TenantId
from ..bus.messages import (
    CheckpointSaved,
    DigestState,
    Done,
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
    SkipOperation,
    StateDigest,
    StateLoaded,
    VersionRecord,
    VersionWritten,
    WeightsExported,
)
from .adapter import Adapter
from .adapters import Adapters
from .bank import HostState
from .checkpoint_state import piece_digests
from .checkpoints import CheckpointRecord, check_fits
from .disk_jobs import Later
from .disk_quota import Room
from .engine import TrainEngine
from .publishing import probe_sequence
from .queues import Operation
from .saved_states import whole
from .snapshots import SnapshotRecord
from .windows import Event


class Operations:
    def __init__(self, config: Config, engine: TrainEngine, adapters: Adapters) -> None:
        # Two tokens are the fewest that can be scored.
        count = max(2, min(config.publish.probe_tokens, engine.details.max_sequence_tokens))
        self._probe = probe_sequence(vocab_size=engine.details.vocab_size, count=count)
        self._most_bytes = config.limits.frame_bytes
        self._keep_versions = config.publish.keep_versions
        self._engine = engine
        self._adapters = adapters
        self._residents = adapters.residents

    def run(self, tenant: TenantId, request: RequestId, operation: Operation) -> Message | Later:
        """Carry out one operation and return its reply; or what is left of it to the disk.

        request: its id. A version that a trainer before this one wrote under it stands, and is what it answers; a
        checkpoint is written anew.

        Raises:
            LoractlError: the operation changed nothing.
        """
        adapter = self._adapters.owned(tenant, operation.adapter)
        if isinstance(operation, SkipOperation):
            return Done()
        self._adapters.take_up(adapter)
        match operation:
            case SaveCheckpoint():
                return self._save(adapter, operation, request)
            case LoadCheckpoint() | LoadVersion() | ImportWeights():
                return self._load_any(adapter, operation)
            case ExportWeights():
                return self._export(adapter)
            case DigestState():
                return self._digest(adapter)
            case PublishAdapter():
                return self._publish(adapter, request, held=operation.held)
            case RefuseOperation(code=code, message=message):
                adapter.happened(Event.FAILED, lane=operation.lane)
                return Failed(code=code, message=message, retryable=False, fault="user")
            case ForwardBackward() | OptimStep():
                raise AssertionError(f"a {operation.kind} is for `batches`")
            case _:
                assert_never(operation)

    def _save(self, adapter: Adapter, operation: SaveCheckpoint, request: RequestId) -> Later:
        checkpoints, name = self._adapters.checkpoints, operation.name
        before = checkpoints.named(adapter.id, name)
        # By a trainer that died before anybody was told: written anew, for what was not told of ran again, too, and may
        # have had others beside it this time.
        again = before is not None and before.request == request
        checkpoints.check_new(adapter.id, name, overwrite=operation.overwrite or again)
        # A copy of its own: what holds the state now may move while the disk is written.
        state = _copy(self._residents.state(adapter.id))
        # It stands until the job has ended, for only one runs at a time.
        replaced_bytes = before.size_bytes if before is not None else 0
        room = self._adapters.quota.room(adapter.record.tenant, replaced_bytes=replaced_bytes)

        def write() -> Callable[[], Message]:
            record = self._adapters.states.checkpoint(adapter, name, state, request, room)
            return partial(self._saved, adapter, record, checkpoints.size_bytes(adapter.id))

        return Later(write)

    def _saved(self, adapter: Adapter, record: CheckpointRecord, size_bytes: int) -> CheckpointSaved:
        """size_bytes: of all the adapter's checkpoints."""
        self._adapters.quota.takes(adapter.record.tenant, adapter.id, size_bytes)
        adapter.checkpoint_step = record.step
        adapter.happened(Event.SAVED)
        return CheckpointSaved(
            adapter=adapter.id,
            name=record.name,
            step=record.step,
            digest=record.digest,
            size_bytes=record.size_bytes,
        )

    def _load_any(
        self, adapter: Adapter, operation: LoadCheckpoint | LoadVersion | ImportWeights
    ) -> Message | Later:
        match operation:
            case LoadCheckpoint():
                return self._load(adapter, operation)
            case LoadVersion():
                return self._load_version(adapter, operation)
            case ImportWeights():
                return self._import(adapter, operation)
            case _:
                assert_never(operation)

    def _load(self, adapter: Adapter, operation: LoadCheckpoint) -> Later:
        adapter.window.check_replaceable(operation.lane)
        source = self._source(adapter, operation)
        record = self._adapters.checkpoints.find(source.id, operation.name)
        check_fits(record, adapter.lora, adapter.record.base)

        def read() -> HostState:
            tensors, metadata = self._adapters.checkpoints.load(record)
            return self._engine.state_from_checkpoint(
                tensors, metadata, adapter.lora, with_optimizer=operation.with_optimizer
            )

        return self._replace(adapter, read, operation.lane)

    def _load_version(self, adapter: Adapter, operation: LoadVersion) -> Later:
        adapter.window.check_replaceable(operation.lane)
        source = self._source(adapter, operation)
        record = self._adapters.versions.find(source.id, operation.version)

        def read() -> HostState:
            config_json, safetensors = self._adapters.versions.files(record)
            return self._engine.state_from_peft(config_json, safetensors, adapter.lora)

        return self._replace(adapter, read, operation.lane)

    def _source(self, adapter: Adapter, operation: LoadCheckpoint | LoadVersion) -> Adapter:
        """Raises AdapterNotFound: it is not there, or not of whom the operation says."""
        return self._adapters.owned(operation.source_owner or adapter.record.tenant, operation.source)

    def _import(self, adapter: Adapter, operation: ImportWeights) -> Later:
        adapter.window.check_replaceable(operation.lane)
        data = operation.safetensors.tobytes()

        def read() -> HostState:
            return self._engine.state_from_peft(operation.config_json, data, adapter.lora)

        return self._replace(adapter, read, operation.lane)

    def _replace(self, adapter: Adapter, read: Callable[[], HostState], lane: LaneId) -> Later:
        """Give the adapter another state, on disk first: where it came from may be gone when it is needed again."""
        self._residents.make_room(adapter.id)
        window = adapter.window

        def write() -> Callable[[], Message]:
            state = read()
            event = Event.REPLACED_MIDWAY if state.gradients is not None else Event.REPLACED
            after = window.after(event, step=state.step, lane=lane)
            record = self._adapters.states.snapshot(whole(adapter.record, state, after))
            return partial(self._replaced, adapter, state, record, event, lane)

        return Later(write)

    def _replaced(
        self, adapter: Adapter, state: HostState, record: SnapshotRecord, event: Event, lane: LaneId
    ) -> StateLoaded:
        try:
            self._residents.replace(adapter.id, state)
        except LoractlError:
            self._adapters.snapshots.discard(record)  # the adapter is as it was
            raise
        adapter.happened(event, step=state.step, lane=lane)
        adapter.became(record)
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

    def _digest(self, adapter: Adapter) -> Later:
        state = _copy(self._residents.state(adapter.id))

        def digest() -> Callable[[], Message]:
            tensors, _ = self._engine.checkpoint_tensors(state)
            return partial(StateDigest, step=state.step, tokens=state.tokens, pieces=piece_digests(tensors))

        return Later(digest)

    def _publish(self, adapter: Adapter, request: RequestId, *, held: bool) -> Message | Later:
        """Everything that can fail comes before the number, except the disk: numbers may be skipped."""
        if (written := self._adapters.versions.of_request(adapter.id, request)) is not None:
            return self._published(adapter, written)
        slot = self._residents.place(adapter.id)
        config_json, safetensors, modules = self._engine.peft_files(slot)
        size_bytes = len(config_json.encode()) + len(safetensors)
        self._room_to_publish(adapter, held=held).check("publish a version", size_bytes)
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
            request=request,
        )

        def write() -> Callable[[], Message]:
            whole = self._adapters.versions.write(record, config_json, safetensors)
            return partial(self._added, adapter, whole, size_bytes)

        return Later(write)

    def _room_to_publish(self, adapter: Adapter, *, held: bool) -> Room:
        versions = self._adapters.versions
        replaced_bytes = 0 if held else versions.replaced_bytes(adapter.id, keep=self._keep_versions)
        return self._adapters.quota.room(adapter.record.tenant, replaced_bytes=replaced_bytes)

    def _added(self, adapter: Adapter, whole: VersionRecord, size_bytes: int) -> VersionWritten:
        self._adapters.versions.add(whole, size_bytes)
        return self._published(adapter, whole)

    def _published(self, adapter: Adapter, whole: VersionRecord) -> VersionWritten:
        adapter.happened(Event.PUBLISHED)
        return VersionWritten(record=whole)


def _copy(state: HostState) -> HostState:
    def copied(piece_N: Tensor | None) -> Tensor | None:
        return None if piece_N is None else piece_N.clone()

    return replace(
        state,
        main=state.main.clone(),
        gradients=copied(state.gradients),
        exp_avg=copied(state.exp_avg),
        exp_avg_sq=copied(state.exp_avg_sq),
    )
