"""The embedded sampling engine: torch over the Hugging Face model, for where vLLM is not, or not exact.

This file is its asyncio face. A worker thread (`torch_worker`) owns the model and runs steps
(`torch_steps`); `torch_plan` decides who runs in each; `torch_attention` and `torch_cache` keep
sequences apart; `torch_lora` adds each token's own adapter; `torch_sampling` picks tokens.

The same job gives the same tokens whatever its neighbours, as far as rounding allows: products over
batches of another size may differ in the last bits, nothing else does.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace

from ..bus.errors import EngineFailed, LoractlError
from ..bus.messages import EngineName, VersionRecord
from .engine import (
    PLAIN_WISH,
    Choices,
    Delta,
    EngineSettings,
    Job,
    Scores,
    ScoreWish,
    VersionKey,
    key_of,
)
from .scoring import empty_rows, first_row, scores_of
from .torch_adapter import read_adapter
from .torch_model import PackedModel
from .torch_steps import Events, Scored, answer, score
from .torch_worker import Bind, Cancel, Command, Stop, Submit, Unbind, Worker


class TorchEngine:
    """Fulfils `engine.Engine`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._streams: dict[str, _Stream] = {}
        self._scores: dict[str, asyncio.Future[Scores]] = {}
        self._score_numbers = itertools.count(1)
        self._bound: dict[VersionKey, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._model: PackedModel | None = None

    @property
    def name(self) -> EngineName:
        return "torch"

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bound.clear()
        self._worker = Worker(self._settings, self._post)
        self._worker.start()
        self._model = await asyncio.wrap_future(self._worker.started)

    async def add(self, record: VersionRecord) -> int:
        model, key = self._model, key_of(record)
        if model is None:
            raise EngineFailed("the torch engine is not running")
        if key in self._bound and await self.healthy():
            return self._bound[key]
        # In a thread of its own: steps go on while files are read.
        adapter = await asyncio.to_thread(
            read_adapter, record, model.lora.shapes, dtype=model.dtype, device=model.device
        )
        done: Future[int] = Future()
        self._send(Bind(key, adapter, done))
        self._bound[key] = await asyncio.wrap_future(done)
        return self._bound[key]

    async def remove(self, key: VersionKey) -> None:
        self._bound.pop(key, None)
        done: Future[None] = Future()
        self._send(Unbind(key, done))
        await asyncio.wrap_future(done)

    async def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        stream = _Stream()
        self._streams[job.key] = stream
        try:
            self._send(Submit(answer(job)))
            while not stream.exhausted:
                yield await stream.next()
        finally:
            del self._streams[job.key]
            if not stream.ended:
                self._send(Cancel(job.key))

    async def abort(self, job_key: str) -> None:
        self._send(Cancel(job_key))

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        rows = len(prompt) - 1
        if first_row(wish, rows) == rows and await self.healthy():
            return scores_of(wish, *empty_rows(wish, rows), cached=0)
        key = f"score {next(self._score_numbers)}"
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._scores[key] = future
        try:
            self._send(Submit(score(key, version, prompt, wish)))
            return await future
        finally:
            del self._scores[key]
            if future.cancelled():
                self._send(Cancel(key))

    async def healthy(self) -> bool:
        return self._model is not None and self._worker is not None and not self._worker.failed

    async def close(self) -> None:
        worker, self._worker, self._model = self._worker, None, None
        if worker is not None:
            worker.send(Stop())
            await asyncio.to_thread(worker.join)

    def _send(self, command: Command) -> None:
        if self._worker is None:
            raise EngineFailed("the torch engine is not running")
        self._worker.send(command)

    def _post(self, events: Events) -> None:
        """In the worker's thread: one wake-up of the loop for all events of a step."""
        assert self._loop is not None, "the worker starts after the loop is known"
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Events) -> None:
        """Back in the loop. Who gave up in the meantime is no longer in the tables."""
        for key, event in events:
            if stream := self._streams.get(key):
                stream.put(event)
            elif (future := self._scores.get(key)) and not future.done():
                match event:
                    case Scored(scores):
                        future.set_result(scores)
                    case Delta():
                        future.set_exception(EngineFailed("the torch engine was closed"))
                    case error:
                        future.set_exception(error)


class _Stream:
    """Deltas of one job on their way to its reader; a slow reader gets several as one."""

    def __init__(self) -> None:
        self.ended = False
        self.exhausted = False
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._choices: list[Choices] = []
        self._last: Delta | None = None
        self._error: LoractlError | None = None
        self._changed = asyncio.Event()

    def put(self, event: Delta | Scored | LoractlError) -> None:
        match event:
            case Delta():
                self._tokens += event.tokens
                self._logprobs += event.logprobs
                self._choices += event.choices
                self._last = event
                self.ended = event.finished is not None
            case Scored():
                raise AssertionError("a job is never scored")
            case error:
                self._error = error
                self.ended = True
        self._changed.set()

    async def next(self) -> Delta:
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error
        assert self._last is not None, "woken without a delta"
        delta = replace(
            self._last,
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            choices=tuple(self._choices),
        )
        self._tokens, self._logprobs, self._choices = [], [], []
        self.exhausted = self.ended
        return delta
