"""Jobs for engines under test, and what became of them."""

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from loractl.bus.messages import StopReason
from loractl.sampler_actor.engine import Choices, Engine, Job, VersionKey
from loractl.tests.sampler_actor.tiny import VOCAB, Reference

_numbers = itertools.count()


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, VOCAB, length))


def job_of(
    version: VersionKey | None = None,
    prompt: tuple[int, ...] | None = None,
    *,
    max_tokens: int = 12,
    temperature: float = 0.0,
    top_k: int = -1,
    top_p: float = 1.0,
    seed: int = 0,
    stop_tokens: tuple[int, ...] = (),
    topk: int = 0,
) -> Job:
    return Job(
        key=f"job-{next(_numbers)}",
        version=version,
        prompt=prompt or prompt_of(9),
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        topk=topk,
    )


@dataclass(frozen=True)
class Outcome:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: StopReason
    choices: tuple[Choices, ...]


async def outcome(engine: Engine, job: Job) -> Outcome:
    tokens: list[int] = []
    logprobs: list[float] = []
    choices: list[Choices] = []
    async for delta in engine.sample(job):
        assert len(delta.tokens) == len(delta.logprobs)
        tokens += delta.tokens
        logprobs += delta.logprobs
        choices += delta.choices
        finished = delta.finished
    assert finished is not None, "the stream ended without saying why"
    return Outcome(tuple(tokens), tuple(logprobs), finished, tuple(choices))


async def outcomes(engine: Engine, jobs: Iterable[Job], *, at_once: int = 8) -> list[Outcome]:
    """All jobs, never more under way than the engine was promised."""
    places = asyncio.Semaphore(at_once)

    async def one(job: Job) -> Outcome:
        async with places:
            return await outcome(engine, job)

    return list(await asyncio.gather(*(one(job) for job in jobs)))


def assert_logprobs_are_the_references(reference: Reference, job: Job, got: Outcome) -> None:
    """Teacher-forced: what Hugging Face and PEFT give the very tokens that were sampled."""
    whole = job.prompt + got.tokens
    expected = reference.logprobs(job.version, whole, temperature=job.temperature or 1.0)
    np.testing.assert_allclose(got.logprobs, expected[len(job.prompt) :], rtol=0, atol=1e-4)
