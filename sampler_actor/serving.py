"""Carries out one `Sample`: takes turns, runs its sequences, streams them, gathers the answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import replace

import numpy as np

from ..bus.errors import EngineFailed, LoractlError
from ..bus.ids import TenantId
from ..bus.messages import EngineName, SampleChunk, SampleResult
from .engine import Delta, Engine, Job, Scores, ScoreWish
from .hosts import EngineHost, Engines
from .library import Library
from .requests import Plan
from .sequences import GrowingSequence, Piece
from .text import Tokenizer

_NO_TOKENS = np.empty(0, np.int64)
_NO_LOGPROBS = np.empty(0, np.float32)


class Answering:
    """One Sample under way. stream: receives chunks as they come, if they were asked for."""

    def __init__(
        self,
        plan: Plan,
        tenant: TenantId,
        *,
        engines: Engines,
        library: Library,
        tokenizer: Tokenizer,
        stream: Callable[[SampleChunk], None],
    ) -> None:
        self._plan = plan
        self._tenant = tenant
        self._engines = engines
        self._library = library
        self._stream = stream
        count = len(plan.jobs) + plan.no_room
        self._sequences = [GrowingSequence(tokenizer, plan.stop_strings) for _ in range(count)]
        self._scores: Scores | None = None
        # What has not reached an engine yet can be cancelled; what has is aborted there.
        self._tasks: dict[Job | None, asyncio.Task[None]] = {}
        self._on_engine: dict[str, Engine] = {}
        self._aborted = False

    async def run(self) -> SampleResult:
        """Sample everything. One sequence that fails fails the request.

        Raises:
            VersionNotFound, PublishFailed: the version does not exist, or cannot be served.
            EngineFailed: the engine died under it.
        """
        version = self._plan.version
        async with self._library.pinned(version) if version else nullcontext():
            host = self._library.host(version) if version else self._engines.host(self._engines.base.engine)
            if not self._aborted:
                await self._run_all(host)
        for sequence in self._sequences:
            # Those aborted before they began, and those without room; the others have ended.
            sequence.end("length" if self._plan.no_room else "abort")
        return self._result(host.name)

    async def abort(self) -> None:
        """End every sequence where it is; `run` then returns what there is."""
        self._aborted = True
        for job, task in self._tasks.items():
            if job is None or job.key not in self._on_engine:
                task.cancel()
        for key, engine in list(self._on_engine.items()):
            try:
                await engine.abort(key)
            except EngineFailed:
                return  # its streams end by themselves

    async def _run_all(self, host: EngineHost) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if self._plan.wish is not None:
                    self._tasks[None] = group.create_task(self._score(host, self._plan.wish))
                for index, job in enumerate(self._plan.jobs):
                    self._tasks[job] = group.create_task(self._sample(index, job, host))
        except ExceptionGroup as errors:
            raise _first(errors) from errors

    async def _score(self, host: EngineHost, wish: ScoreWish) -> None:
        try:
            async with host.gate.turn(self._tenant), self._engine(host) as engine:
                self._scores = await engine.score(self._plan.version, self._plan.prompt, wish)
        except asyncio.CancelledError:
            if not self._aborted:
                raise

    async def _sample(self, index: int, job: Job, host: EngineHost) -> None:
        sequence = self._sequences[index]
        try:
            async with host.gate.turn(self._tenant), self._engine(host) as engine:
                self._on_engine[job.key] = engine
                async with aclosing(engine.sample(job)) as deltas:
                    async for delta in deltas:
                        self._take(index, sequence, delta)
                        # An abort that came before the engine had the job is not known to it.
                        if sequence.reason is not None or self._aborted:
                            break
        except asyncio.CancelledError:
            if not self._aborted:
                raise
        finally:
            self._on_engine.pop(job.key, None)

    @asynccontextmanager
    async def _engine(self, host: EngineHost) -> AsyncIterator[Engine]:
        """The running engine, with our version loaded as long as the block lasts."""
        if self._plan.version is None:
            yield await host.engine()
            return
        async with self._library.loaded(self._plan.version) as engine:
            yield engine

    def _take(self, index: int, sequence: GrowingSequence, delta: Delta) -> None:
        piece: Piece = sequence.take(delta)
        if self._plan.stream and (piece.tokens or piece.text):
            tokens = np.array(piece.tokens, np.int64)
            self._stream(SampleChunk(index=index, tokens=tokens, text=piece.text))

    def _result(self, engine: EngineName) -> SampleResult:
        sequences = self._sequences
        reasons = [sequence.reason for sequence in sequences]
        result = SampleResult(
            version=self._plan.version.number if self._plan.version else 0,
            engine=engine,
            lengths=np.array([len(s.tokens) for s in sequences], np.int64),
            tokens=np.array([t for s in sequences for t in s.tokens], np.int64),
            logprobs=np.array([x for s in sequences for x in s.logprobs], np.float32),
            texts=tuple(s.text for s in sequences),
            stop_reasons=tuple(reason for reason in reasons if reason is not None),
            prompt_logprobs=np.empty(0, np.float32),
            prompt_cached_tokens=self._cached(),
        )
        if self._plan.topk:
            result = self._with_choices(result)
        return result if self._scores is None else self._with_scores(result, self._scores)

    def _with_choices(self, result: SampleResult) -> SampleResult:
        shape = (len(result.tokens), self._plan.topk)
        tokens = [np.array(s.choice_tokens, np.int64) for s in self._sequences]
        logprobs = [np.array(s.choice_logprobs, np.float32) for s in self._sequences]
        return replace(
            result,
            sample_topk_tokens=np.concatenate([*tokens, _NO_TOKENS]).reshape(shape),
            sample_topk_logprobs=np.concatenate([*logprobs, _NO_LOGPROBS]).reshape(shape),
        )

    def _with_scores(self, result: SampleResult, scores: Scores) -> SampleResult:
        return replace(
            result,
            prompt_logprobs=scores.logprobs if self._plan.prompt_logprobs else result.prompt_logprobs,
            prompt_topk_tokens=scores.topk_tokens,
            prompt_topk_logprobs=scores.topk_logprobs,
            prompt_target_logprobs=scores.target_logprobs,
            prompt_alt_tokens=scores.alternative_tokens,
            prompt_alt_logprobs=scores.alternative_logprobs,
        )

    def _cached(self) -> int:
        """What not even the first of all runs over the prompt had to compute."""
        found = [sequence.cached for sequence in self._sequences]
        found += [self._scores.cached if self._scores else None]
        return min((cached for cached in found if cached is not None), default=0)


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """One error for the caller: a bug before anything that was meant, else whichever came first."""
    bugs = [error for error in errors.exceptions if not isinstance(error, LoractlError)]
    return [*bugs, *errors.exceptions][0]
