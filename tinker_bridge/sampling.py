"""Samples: each is a future of one Sample on the bus. What is sampled from is `samplers`'s to say."""

import asyncio
import hashlib
from dataclasses import replace

import structlog

from ..bus.errors import ActorRestarting, EngineFailed, VersionNotFound
from ..bus.ids import TenantId
from ..bus.messages import Abort, Sample, SampleResult
from .base import BaseModel, Bus
from .futures import PROTOBUF, Future, Futures, Key, Progress, Result
from .records import SamplerRecord
from .samplers import Samplers
from .wire import decode_sample, encode_sample, sample_json

log = structlog.get_logger()

# A sample that brings every sampler down must not do so for ever.
_ATTEMPTS = 3

# The SDK numbers the samples of a cloned client from clone id times this.
_CLONE = 1_000_000_000


class Sampling:
    """pending: samples under way at which clients are told to slow down."""

    def __init__(
        self, bus: Bus, base: BaseModel, samplers: Samplers, futures: Futures, *, pending: int
    ) -> None:
        self._bus = bus
        self._base = base
        self._samplers = samplers
        self._futures = futures
        self._most_pending = pending
        self._pending = 0

    @property
    def full(self) -> bool:
        """Whether no more samples should come for a moment."""
        return self._pending >= self._most_pending

    def submit(self, tenant: TenantId, sampler: SamplerRecord, seq: int, content: bytes) -> Future:
        """Start a sample, or join the one that came under its number before.

        content: the request's body. What is wrong with it is the future's answer.

        Raises:
            RequestConflict: the number was used for something else.
        """

        async def work(progress: Progress) -> Result:
            self._pending += 1
            try:
                context_tokens = (await self._base.details()).max_sequence_tokens
                call = decode_sample(content, context_tokens=context_tokens)
                source = await self._samplers.source(tenant, sampler.id)
                sample = replace(
                    call.message, adapter=source.adapter, version=source.version, owner=source.owner
                )
                try:
                    result = await self._sampled(tenant, sample, progress)
                except VersionNotFound as error:
                    raise _gone(sampler) from error
                return Result(encode_sample(result, call), PROTOBUF, to_json=sample_json)
            finally:
                self._pending -= 1

        digest = hashlib.blake2b(content, digest_size=16).digest()
        key, group = ("seq_id", str(seq), "of", sampler.id), group_of(sampler.id, seq // _CLONE)
        return self._futures.start(tenant, key, digest, work, scope=sampler.parent, group=group)

    async def _sampled(self, tenant: TenantId, sample: Sample, progress: Progress) -> SampleResult:
        """A sample changes nothing, so one that was lost with its sampler is asked for again."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._asked(tenant, sample, progress)
            except (ActorRestarting, EngineFailed) as error:
                log.info("sample.asked_for_again", tenant=tenant, reason=error.message)
        return await self._asked(tenant, sample, progress)

    async def _asked(self, tenant: TenantId, sample: Sample, progress: Progress) -> SampleResult:
        progress.waiting = pending = self._bus.submit(sample, tenant=tenant)
        try:
            result = await pending.result()
        except asyncio.CancelledError:
            self._bus.submit(Abort(target=pending.request), tenant=tenant)
            raise
        assert isinstance(result, SampleResult)
        return result


def _gone(sampler: SamplerRecord) -> VersionNotFound:
    """What the broker says names versions, which may be another tenant's."""
    what = f": {sampler.model_path} was deleted, or expired" if sampler.model_path is not None else ""
    return VersionNotFound(f"what sampling session {sampler.id} sampled from is gone{what}")


def group_of(sampler: str, clone: int) -> Key:
    """Where the completions of one client of a sampling session are announced."""
    return ("samples", sampler, str(clone))
