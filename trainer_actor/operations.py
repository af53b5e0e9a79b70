"""What each operation of a lane does: to the engine, to the disk, to the adapter's window.

Every operation is all or nothing: what it raises leaves the adapter as it was. An optim_step behind
a forward_backward that failed applies what the others of its window gathered; if there was nothing,
it is an exact no-op (`applied` False). Who may run when is left to `lanes` and `plan`.
"""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from ..bus.config import Config
from ..bus.errors import InvalidRequest, LoractlError
from ..bus.failures import failed
from ..bus.ids import TenantId
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
    PassResult,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    VersionRecord,
    VersionWritten,
    WeightsExported,
)
from .adapters import Adapter, Adapters
from .bank import HostState
from .checkpoints import AUTOMATIC, check_fits
from .engine import TrainEngine
from .lanes import Operation
from .passes import AdamParams, PartOutcome, PassPart
from .publishing import probe_sequence
from .windows import Event


class Operations:
    def __init__(self, config: Config, engine: TrainEngine, adapters: Adapters) -> None:
        # Two tokens are the fewest that can be scored.
        count = max(2, min(config.publish.probe_tokens, engine.details.max_sequence_tokens))
        self._probe = probe_sequence(vocab_size=engine.details.vocab_size, count=count)
        self._most_bytes = config.limits.frame_bytes
        self._engine = engine
        self._adapters = adapters

    def run_pass(self, members: Sequence[tuple[TenantId, ForwardBackward]]) -> list[Message]:
        """Run forward_backwards of different adapters as one pass over the base model.

        Each gets its own reply, in their order: one that fails does so alone.
        """
        parts: list[tuple[Adapter, PassPart] | LoractlError] = []
        for tenant, operation in members:
            try:
                parts.append(self._part(tenant, operation))
            except LoractlError as error:
                parts.append(error)
        good = [part for part in parts if not isinstance(part, LoractlError)]
        try:
            outcomes = iter(self._engine.forward_backward([part for _, part in good]) if good else [])
        finally:
            for adapter, _ in good:
                self._adapters.residents.unpin(adapter.id)
        return [
            failed(part) if isinstance(part, LoractlError) else _passed(*part, next(outcomes))
            for part in parts
        ]

    def run(self, tenant: TenantId, operation: Operation) -> Message:
        """Carry out one operation and return its reply.

        Raises:
            LoractlError: the operation changed nothing.
        """
        adapter = self._adapters.owned(tenant, operation.adapter)
        self._adapters.take_up(adapter)
        match operation:
            case ForwardBackward():
                return self.run_pass([(tenant, operation)])[0]
            case OptimStep():
                return self._step(adapter, operation)
            case SaveCheckpoint():
                return self._save(adapter, operation)
            case LoadCheckpoint():
                return self._load(adapter, operation)
            case LoadVersion():
                return self._load_version(adapter, operation)
            case ImportWeights():
                data = operation.safetensors.tobytes()
                return self._import(adapter, operation.config_json, data)
            case ExportWeights():
                return self._export(adapter)
            case PublishAdapter():
                return self._publish(adapter, held=operation.held)
            case RefuseOperation(code=code, message=message):
                adapter.happened(Event.FAILED)
                return Failed(code=code, message=message, retryable=False, fault="user")
            case _:
                assert_never(operation)

    def _part(self, tenant: TenantId, operation: ForwardBackward) -> tuple[Adapter, PassPart]:
        """Check the data and bring the adapter into a slot, where it stays until it is unpinned."""
        adapter = self._adapters.owned(tenant, operation.adapter)
        self._adapters.take_up(adapter)
        part = PassPart(
            slot=self._adapters.residents.place(adapter.id),
            lora=adapter.lora,
            lengths=operation.lengths,
            tokens=operation.tokens,
            targets=operation.targets,
            weights=operation.weights,
            old_logprobs=operation.old_logprobs,
            advantages=operation.advantages,
            loss=operation.loss,
            loss_config=operation.loss_config,
            backward=not operation.forward_only,
            ratio_mask=operation.ratio_mask,
        )
        self._engine.check_part(part)
        self._adapters.residents.pin(adapter.id)
        return adapter, part

    def _step(self, adapter: Adapter, operation: OptimStep) -> StepResult:
        params = AdamParams(
            learning_rate=operation.learning_rate,
            beta1=operation.beta1,
            beta2=operation.beta2,
            eps=operation.eps,
            weight_decay=operation.weight_decay,
            grad_clip_norm=operation.grad_clip_norm,
        )
        outcome = self._engine.optim_step(self._adapters.residents.place(adapter.id), params)
        if outcome.applied:
            adapter.happened(Event.COMMITTED, step=outcome.step)
        else:
            adapter.happened(Event.STEPPED_ON_NOTHING)
        return StepResult(
            applied=outcome.applied,
            step=outcome.step,
            grad_norm=outcome.grad_norm,
            learning_rate=operation.learning_rate,
            tokens=outcome.tokens,
        )

    def _save(self, adapter: Adapter, operation: SaveCheckpoint) -> CheckpointSaved:
        self._adapters.checkpoints.check_new(adapter.id, operation.name, overwrite=operation.overwrite)
        state = self._adapters.residents.state(adapter.id)
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
        source = self._source(adapter, operation)
        record = self._adapters.checkpoints.find(source.id, operation.name)
        check_fits(record, adapter.lora, adapter.record.base)
        tensors, metadata = self._adapters.checkpoints.load(record)
        state = self._engine.state_from_checkpoint(
            tensors, metadata, adapter.lora, with_optimizer=operation.with_optimizer
        )
        return self._replace(adapter, state)

    def _load_version(self, adapter: Adapter, operation: LoadVersion) -> StateLoaded:
        source = self._source(adapter, operation)
        return self._import(adapter, *self._adapters.versions.files(source.id, operation.version))

    def _source(self, adapter: Adapter, operation: LoadCheckpoint | LoadVersion) -> Adapter:
        """Raises AdapterNotFound: it is not there, or not of whom the operation says."""
        return self._adapters.owned(operation.source_owner or adapter.record.tenant, operation.source)

    def _import(self, adapter: Adapter, config_json: str, safetensors: bytes) -> StateLoaded:
        return self._replace(adapter, self._engine.state_from_peft(config_json, safetensors, adapter.lora))

    def _replace(self, adapter: Adapter, state: HostState) -> StateLoaded:
        """Give the adapter another state, on disk first: a restart would else lose where it began."""
        self._adapters.save(adapter, AUTOMATIC, state)
        self._adapters.residents.replace(adapter.id, state)
        event = Event.REPLACED_MIDWAY if state.gradients is not None else Event.REPLACED
        adapter.happened(event, step=state.step)
        adapter.happened(Event.SAVED)
        return StateLoaded(step=state.step)

    def _export(self, adapter: Adapter) -> WeightsExported:
        slot = self._adapters.residents.place(adapter.id)
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
        slot = self._adapters.residents.place(adapter.id)
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


def _passed(adapter: Adapter, part: PassPart, outcome: PartOutcome) -> Message:
    """The reply to one part of a pass that ran, and what it did to its window."""
    if isinstance(outcome, LoractlError):
        adapter.happened(Event.FAILED)
        return failed(outcome)
    adapter.happened(Event.GATHERED if part.backward else Event.SCORED)
    return PassResult(logprobs=outcome.logprobs, loss_terms=outcome.loss_terms, metrics=outcome.metrics)
