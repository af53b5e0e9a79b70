"""What each numbered operation of a run asks of the trainer, and what its client reads.

forward_backward is `wire`'s to translate; the rest are JSON bodies.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..bus.errors import InvalidRequest, NotSupported
from ..bus.messages import (
    CheckpointSaved,
    Ints,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    PassResult,
    PublishAdapter,
    Receipt,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    VersionRecord,
)
from .adapters import load_operation
from .apart import Apart
from .bodies import LoadWeightsBody, OptimStepBody, SaveForSamplerBody, SaveWeightsBody
from .calls import Operation, Place
from .checkpoints import Checkpoints, checked_ttl
from .future_rows import Asked
from .pace import Pace
from .records import RunRecord
from .results import PROTOBUF, Result, json_result
from .samplers import Samplers
from .wire import Envelope, ForwardBackwardCall, decode_forward_backward, encode_pass, to_message

# What is larger is read in a thread: a few milliseconds of the loop.
_INLINE_BYTES = 4 * 2**20


class Pass:
    """forward_backward, in whatever form it came. Its arrays may be much more than what was sent: then the
    body is kept, and they can be let go of and made again.
    """

    def __init__(
        self, asked: Asked, envelope: Envelope, *, forward_only: bool, pace: Pace, apart: Apart
    ) -> None:
        self._asked: Asked | None = asked
        self._tenant = asked.tenant
        self._envelope = envelope
        self._forward_only = forward_only
        self._pace = pace
        self._apart = apart
        self._call: ForwardBackwardCall | None = None
        self._lengths: Ints | None = None
        self._metrics: Mapping[str, float] = {}
        self.grown_bytes = 0

    async def prepare(self) -> None:
        if self._call is not None:
            return
        assert self._asked is not None
        await self._pace.turn(self._envelope.plain_bytes)
        read = partial(_read, self._asked, forward_only=self._forward_only)
        inline = self._asked.content_encoding is None and not self._envelope.heavy
        if inline and self._envelope.plain_bytes <= _INLINE_BYTES:
            self._call = read()
        else:
            self._call = await self._apart.run(self._tenant, read)
        self._lengths, self._metrics = self._call.inputs.lengths, self._call.metrics
        size_bytes = self._call.inputs.size_bytes
        if size_bytes > _GROWN * len(self._asked.body):
            self.grown_bytes = size_bytes
        else:
            self._asked = None  # the arrays may be views on it; nobody else needs it

    def build(self, _run: RunRecord, place: Place) -> Operation:
        assert self._call is not None
        return to_message(self._call, adapter=place.adapter, lane=place.lane, seq=place.seq)

    def fold(self) -> None:
        self._call = None

    async def finish(self, answer: Message, _made_by: str) -> Result:
        assert isinstance(answer, PassResult)
        assert self._lengths is not None
        body = encode_pass(answer, self._lengths, self._metrics)
        return Result(body, PROTOBUF, form="pass")

    def close(self) -> None:
        pass


# Arrays are int64 and float32 where what was sent may be int32.
_GROWN = 4


def _read(asked: Asked, *, forward_only: bool) -> ForwardBackwardCall:
    return decode_forward_backward(
        asked.body, asked.content_type, asked.content_encoding, forward_only=forward_only
    )


class Step:
    """optim_step: AdamW with the parameters of this very step."""

    def __init__(self, body: OptimStepBody) -> None:
        self._body = body

    def build(self, _run: RunRecord, place: Place) -> Operation:
        if self._body.optimizer_params is not None:
            raise NotSupported(
                f"the optimizer {self._body.optimizer_params.get('type')!r} is not supported by this "
                "server: pass adam_params"
            )
        adam = self._body.adam_params
        return OptimStep(
            adapter=place.adapter,
            lane=place.lane,
            seq=place.seq,
            learning_rate=adam.learning_rate,
            beta1=adam.beta1,
            beta2=adam.beta2,
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            grad_clip_norm=adam.grad_clip_norm,
        )

    async def finish(self, answer: Message, _made_by: str) -> Result:
        assert isinstance(answer, StepResult)
        metrics = {
            "grad_norm": answer.grad_norm,
            "learning_rate": answer.learning_rate,
            "tokens": float(answer.tokens),
            "applied": float(answer.applied),
            "optimizer_step": float(answer.step),
        }
        return json_result({"type": "optim_step", "metrics": metrics})

    def close(self) -> None:
        pass


class Save:
    """save_weights: a training checkpoint under the client's name."""

    def __init__(self, body: SaveWeightsBody, checkpoints: Checkpoints) -> None:
        self._body = body
        self._checkpoints = checkpoints
        self._run: RunRecord | None = None
        self._name = ""
        self._reserved = ""

    def build(self, run: RunRecord, place: Place) -> Operation:
        checked_ttl(self._body.ttl_seconds)
        self._checkpoints.check_free(run, "training", self._named(place), overwrite=self._body.overwrite)
        self.take_up(run, place)
        # The trainer may hold one that expired and was not swept yet, or that nobody got to hear of.
        return SaveCheckpoint(
            adapter=place.adapter, lane=place.lane, seq=place.seq, name=self._name, overwrite=True
        )

    def take_up(self, run: RunRecord, place: Place) -> None:
        self._run, self._name = run, self._named(place)
        self._reserved = self._checkpoints.reserve(run, "training", self._name)

    async def finish(self, answer: Message, made_by: str) -> Result:
        assert isinstance(answer, CheckpointSaved)
        assert self._run is not None
        record = self._checkpoints.add(
            self._run,
            "training",
            self._name,
            ttl_s=self._body.ttl_seconds,
            user_metadata=self._body.user_metadata or {},
            size_bytes=answer.size_bytes,
            made_by=made_by,
        )
        return json_result({"type": "save_weights", "path": record.id})

    def close(self) -> None:
        self._checkpoints.release(self._reserved)

    def _named(self, place: Place) -> str:
        return self._body.path or f"{place.seq:06d}"


class SaveForSampler:
    """save_weights_for_sampler: a published version, under a name or as an unnamed snapshot."""

    def __init__(self, body: SaveForSamplerBody, checkpoints: Checkpoints, samplers: Samplers) -> None:
        self._body = body
        self._checkpoints = checkpoints
        self._samplers = samplers
        self._run: RunRecord | None = None
        self._reserved = ""

    def build(self, run: RunRecord, place: Place) -> Operation:
        checked_ttl(self._body.ttl_seconds)
        if self._body.path is not None:
            self._checkpoints.check_free(run, "sampler", self._body.path)
        elif self._body.sampling_session_seq_id is None:
            raise InvalidRequest("name the checkpoint (path), or number a sampling session for it")
        elif not run.parent:
            raise InvalidRequest(f"name the checkpoint (path): model {run.id} belongs to no session")
        self.take_up(run, place)
        return PublishAdapter(adapter=place.adapter, lane=place.lane, seq=place.seq, held=True)

    def take_up(self, run: RunRecord, _place: Place) -> None:
        self._run = run
        if self._body.path is not None:
            self._reserved = self._checkpoints.reserve(run, "sampler", self._body.path)

    async def finish(self, answer: Message, made_by: str) -> Result:
        assert isinstance(answer, Receipt)
        assert self._run is not None
        kind = {"type": "save_weights_for_sampler"}
        if self._body.path is None:
            number = self._body.sampling_session_seq_id
            assert number is not None
            inflight = self._body.kind == "inflight"
            sampler = await self._samplers.add_snapshot(
                self._run, number, answer.record, inflight=inflight, made_by=made_by
            )
            return json_result({**kind, "sampling_session_id": sampler.id})
        record = self._checkpoints.add(
            self._run,
            "sampler",
            self._body.path,
            ttl_s=self._body.ttl_seconds,
            user_metadata=self._body.user_metadata or {},
            version=answer.record.number,
            size_bytes=_size_bytes(answer.record),
            made_by=made_by,
        )
        return json_result({**kind, "path": record.id})

    def close(self) -> None:
        self._checkpoints.release(self._reserved)


class Load:
    """load_weights on a run that is under way: pending gradients are dropped."""

    def __init__(self, body: LoadWeightsBody, checkpoints: Checkpoints) -> None:
        self._body = body
        self._checkpoints = checkpoints
        self._run: RunRecord | None = None

    def build(self, run: RunRecord, place: Place) -> LoadCheckpoint | LoadVersion:
        self.take_up(run, place)
        source = self._checkpoints.find(run.tenant, self._body.path)
        return load_operation(
            source, run.tenant, place.adapter, place.lane, place.seq, optimizer=self._body.optimizer
        )

    def take_up(self, run: RunRecord, _place: Place) -> None:
        self._run = run

    async def finish(self, answer: Message, _made_by: str) -> Result:
        assert isinstance(answer, StateLoaded)
        assert self._run is not None
        return loaded_result(self._run, self._body.path)

    def close(self) -> None:
        pass


def loaded_result(run: RunRecord, path: str) -> Result:
    return json_result({"type": "load_weights", "path": path, "model_id": run.id})


def _size_bytes(version: VersionRecord) -> int:
    return sum(file.stat().st_size for file in Path(version.directory).glob("adapter_*"))
