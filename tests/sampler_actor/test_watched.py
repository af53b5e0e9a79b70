"""An engine's getting on shows, whatever engine it is."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from loractl.bus.messages import EngineName, VersionRecord
from loractl.bus.pulse import Busy, Strand
from loractl.sampler_actor.engine import PLAIN_WISH, Delta, Job, Scores, ScoreWish, VersionKey
from loractl.sampler_actor.watched import Watched
from loractl.tests.sampler_actor.jobs import job_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class ByHand:
    """An engine that goes on when it is told to."""

    def __init__(self) -> None:
        self.step = asyncio.Semaphore(0)

    @property
    def name(self) -> EngineName:
        return "torch"

    async def start(self) -> None: ...
    async def remove(self, key: VersionKey) -> None: ...
    async def abort(self, job_key: str) -> None: ...
    async def close(self) -> None: ...

    async def add(self, record: VersionRecord) -> int:
        raise NotImplementedError

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        raise NotImplementedError

    async def healthy(self) -> bool:
        return True

    async def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        for _ in range(job.max_tokens):
            await self.step.acquire()
            yield Delta(tokens=(1,), logprobs=(0.0,))


def test_an_engine_that_makes_no_token_stands_still_and_each_token_of_any_job_is_a_step():
    async def told() -> list[Busy]:
        clock = Clock()
        strand, inner = Strand(clock), ByHand()
        engine = Watched(inner, strand)
        seen = [strand.busy()]
        job = job_of(None, prompt=(1, 2), max_tokens=2)
        streams = [engine.sample(job), engine.sample(replace(job, key="other"))]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(0)
        clock.now = 100.0
        seen.append(strand.busy())
        inner.step.release()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        clock.now = 101.0
        seen.append(strand.busy())
        inner.step.release()
        await asyncio.wait(waiting)
        for stream in streams:
            await stream.aclose()
        clock.now = 500.0
        return [*seen, strand.busy()]

    idle, stuck, stepped, ended = asyncio.run(told())

    assert idle == ended == Busy(0.0, "")
    assert stuck == Busy(100.0, "a sample on torch")
    assert stepped == Busy(1.0, "a sample on torch and 1 more")
