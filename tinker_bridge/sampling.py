"""Samples: each is a future of one Sample on the bus. What is sampled from is `samplers`'s to say."""

import asyncio
from dataclasses import fields, replace
from functools import partial

import numpy as np
import structlog

from ..bus.errors import (
    ActorRestarting,
    ActorStopping,
    AnotherBase,
    EngineFailed,
    QuotaExceeded,
    VersionNotFound,
)
from ..bus.ids import RequestId, TenantId
from ..bus.messages import Abort, Sample, SampleResult
from .apart import Apart
from .base import BaseModel, Bus
from .future import Future
from .future_ids import Key
from .future_rows import Asked
from .futures import Futures
from .progress import Pause, Progress
from .records import SamplerRecord
from .results import PROTOBUF, Result
from .sample_room import SampleRoom, weight
from .samplers import Samplers
from .wire import SampleEnvelope, decode_sample, encode_sample

log = structlog.get_logger()

# A sample that brings every sampler down must not do so for ever.
_ATTEMPTS = 4
# Before the next one.
_AGAIN_S = 0.5
# Of samples that come without a seed; the sampler adds the number of a sequence.
_SEEDS = 2**62

# The SDK numbers the samples of a cloned client from clone id times this.
_CLONE = 1_000_000_000


class Sampling:
    """room: text samples take it, too."""

    def __init__(
        self,
        bus: Bus,
        base: BaseModel,
        samplers: Samplers,
        futures: Futures,
        *,
        room: SampleRoom,
        apart: Apart,
    ) -> None:
        self._bus = bus
        self._base = base
        self._samplers = samplers
        self._futures = futures
        self._apart = apart
        self.room = room

    def check_room(self, tenant: TenantId, weight_bytes: int) -> None:
        """Raises QuotaExceeded: too much is under way; the same request is welcome a moment later."""
        if self.room.full(tenant, weight_bytes):
            raise QuotaExceeded("too many samples are waiting: slow down, and try again in a moment")

    def submit(
        self, asked: Asked, sampler: SamplerRecord, seq: int, envelope: SampleEnvelope, digest: bytes
    ) -> Future:
        """Start a sample, or join the one that came under its number before.

        What is wrong with its body is the future's answer. digest: of its body.

        Raises:
            RequestConflict: the number was used for something else.
            QuotaExceeded: too many are under way; one that came before is joined all the same.
        """

        async def work(progress: Progress) -> Result:
            with self.room.taken(tenant, weight_bytes=weight_bytes):
                progress.waiting = self._base
                decoded = partial(decode_sample, content, context_tokens=self._base.most_tokens)
                call = await self._apart.when_large(tenant, grown_bytes, decoded)
                progress.made.set()  # there is room for what it has grown to
                if sampler.adapter is not None or sampler.model_path is not None:
                    await self._base.wait_for_versions()
                source = await self._samplers.source(tenant, sampler.id)
                drawn, seed = progress.origin.number("seed", _SEEDS), call.message.seed
                sample = replace(
                    call.message,
                    adapter=source.adapter,
                    version=source.version,
                    owner=source.owner,
                    seed=drawn if seed is None else seed,
                )
                try:
                    result = await self._sampled(tenant, sample, progress)
                except VersionNotFound as error:
                    raise _gone(sampler) from error
                except AnotherBase as error:
                    raise _elsewhere(sampler) from error
                encoded = partial(encode_sample, result, call)
                body = await self._apart.when_large(tenant, _answer_bytes(result), encoded)
                return Result(body, PROTOBUF, form="sample")

        tenant, content = asked.tenant, asked.body
        grown_bytes = len(content) + envelope.target_bytes
        weight_bytes = weight(grown_bytes, envelope.num_samples)
        key, group = ("seq_id", str(seq), "of", sampler.id), group_of(sampler.id, seq // _CLONE)
        session = sampler.parent
        known = self._futures.known(tenant, key, digest)
        if known is None or known.expired:
            self.check_room(tenant, weight_bytes)
        return self._futures.start(asked, key, digest, work, session=session, scope=session, group=group)

    async def _sampled(self, tenant: TenantId, sample: Sample, progress: Progress) -> SampleResult:
        """A sample changes nothing, so one that was lost with its sampler is asked for again."""
        # An inflight sampler may have moved on since this work ran the last time: that is another request.
        request = progress.origin.request(f"sample {sample.adapter} {sample.version}")
        left = _ATTEMPTS
        while True:
            try:
                return await self._asked(tenant, sample, request, progress)
            except ActorStopping as error:
                progress.waiting = Pause(error.message)
            except (ActorRestarting, EngineFailed) as error:
                left -= 1
                if not left:
                    raise
                log.info("sample.asked_for_again", tenant=tenant, reason=error.message)
                progress.waiting = Pause(error.message)
            await asyncio.sleep(_AGAIN_S)

    async def _asked(
        self, tenant: TenantId, sample: Sample, request: RequestId, progress: Progress
    ) -> SampleResult:
        progress.waiting = pending = self._bus.submit(sample, request=request, tenant=tenant)
        try:
            result = await pending.result()
        except asyncio.CancelledError:
            # One that goes on in the next process is not given up.
            if not self._futures.closed:
                self._bus.submit(Abort(target=pending.request), tenant=tenant)
            raise
        assert isinstance(result, SampleResult)
        return result


def _answer_bytes(result: SampleResult) -> int:
    """Of its arrays; those of the sampled tokens and their choices are the large ones."""
    return sum(
        value.nbytes
        for value in (getattr(result, each.name) for each in fields(result))
        if isinstance(value, np.ndarray)
    )


def _gone(sampler: SamplerRecord) -> VersionNotFound:
    """What the broker says names versions, which may be another tenant's."""
    what = f": {sampler.model_path} was deleted, or expired" if sampler.model_path is not None else ""
    return VersionNotFound(f"what sampling session {sampler.id} sampled from is gone{what}")


def _elsewhere(sampler: SamplerRecord) -> AnotherBase:
    return AnotherBase(
        f"what sampling session {sampler.id} sampled from is kept, and belongs to another base model than the "
        "server has now: start it with the model that it had, or sample from something else"
    )


def group_of(sampler: str, clone: int) -> Key:
    """Where the completions of one client of a sampling session are announced."""
    return ("samples", sampler, str(clone))
