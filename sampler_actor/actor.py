"""The sampler's process: follows the broker's events, serves samples, keeps its engines alive, stops.

Everything runs in one asyncio loop, so nothing here needs a lock. What to do is decided by the pure
files (`versions`, `routing`, `turns`, `stops`, `requests`); `library` and `hosts` do it; an engine
does the sampling. A background task that fails is a bug and ends the process: the supervisor starts
it again. A request that fails is answered.
"""

import asyncio
import itertools
import secrets
import signal
from collections.abc import Coroutine
from typing import get_args

import structlog

from ..bus.async_actor_link import AsyncActorLink
from ..bus.config import Config
from ..bus.errors import ActorStopping, EngineFailed, Internal, LoractlError, NotSupported
from ..bus.failures import failed
from ..bus.follower import News
from ..bus.ids import RequestId, TenantId
from ..bus.messages import (
    Abort,
    AdapterDeleted,
    AdapterPublished,
    Done,
    Drain,
    Echo,
    Echoed,
    EngineName,
    Envelope,
    Message,
    Sample,
    SampleChunk,
    VersionRetired,
    VersionTable,
)
from .engine import EngineSettings, VersionKey, key_of
from .engines import open_engine, resolve_settings, why_not_vllm
from .facts import ModelFacts, read_facts
from .hosts import Engines
from .library import Library
from .requests import plan_sample
from .serving import Answering
from .text import Tokenizer, load_tokenizer
from .watched import Watched

log = structlog.get_logger()

_RECEIVE_S = 5.0
_HEALTH_CHECK_S = 1.0
# Versions loaded at one time because they were published, beside those that requests need.
_LOADS_AHEAD = 4
# Of the time the supervisor gives us to stop: to finish samples, and to close engines.
_FINISH_SHARE = 0.25
_CLOSE_SHARE = 0.5


async def run_sampler(config: Config, actor: str) -> None:
    """Serve until told to stop; everything that came has been answered then.

    Raises:
        InvalidConfig: the model's directory cannot be used.
        EngineFailed: no engine could be started, or one could not be started again.
        DaemonNotRunning: nobody listens on the actors' socket.
    """
    async with AsyncActorLink(config, actor, "sampler") as link:
        facts = read_facts(config)
        tokenizer = await asyncio.to_thread(load_tokenizer, facts.path)
        settings = await asyncio.to_thread(resolve_settings, config, facts)
        sampler = Sampler(config, actor, link, facts, tokenizer, settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, sampler.stop)
        await sampler.run()


class Sampler:
    def __init__(
        self,
        config: Config,
        actor: str,
        link: AsyncActorLink,
        facts: ModelFacts,
        tokenizer: Tokenizer,
        settings: EngineSettings,
    ) -> None:
        self._config = config
        self._link = link
        self._facts = facts
        self._tokenizer = tokenizer
        self._settings = settings
        strands = {name: link.strand() for name in get_args(EngineName)}
        self._group = asyncio.TaskGroup()
        self._engines = Engines(
            lambda name: Watched(open_engine(name, settings), strands[name]),
            choice=config.sampler.engine,
            vllm_missing=why_not_vllm(settings.device),
            places=config.sampler.max_concurrent,
            on_lost=self._engine_lost,
        )
        self._library = Library(
            self._engines,
            actor=actor,
            context_tokens=facts.context_tokens,
            max_loaded=config.sampler.max_loaded,
            tolerance=config.publish.probe_tolerance,
            spawn=self._group.create_task,
            report=link.report,
            ask=link.ask_for_table,
        )
        self._ahead = asyncio.Semaphore(_LOADS_AHEAD)
        self._stopping = asyncio.Event()
        self._doubt = asyncio.Event()
        self._knows_table = False
        self._requests: set[asyncio.Task[None]] = set()
        self._samples: dict[tuple[TenantId, RequestId], Answering] = {}
        self._names = itertools.count(1)

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        serving = asyncio.create_task(self._serve())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            # Also while the engine is still starting, a stop is obeyed at once.
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self._finish()
                serving.cancel()
            await asyncio.wait([serving])
        finally:
            stopped.cancel()
            await self._close_engines()
        if not serving.cancelled() and (error := serving.exception()):
            raise error

    async def _serve(self) -> None:
        await self._engines.start()
        self._link.ready(self._details())
        try:
            async with self._group as group:
                group.create_task(self._follow())
                group.create_task(self._receive())
                group.create_task(self._watch())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    def _details(self) -> str:
        settings, base = self._settings, self._engines.base
        details = f"{base.engine} on {settings.device}, {settings.dtype}, context of {settings.context_tokens} tokens"
        return details if base.engine == "vllm" else f"{details} ({base.reason})"

    # --- what the broker tells -------------------------------------------------------------------

    async def _follow(self) -> None:
        async for news in self._link.events():
            self._hear(news)

    def _hear(self, news: News) -> None:
        match news:
            case VersionTable():
                self._hear_table(news)
            case AdapterPublished():
                self._library.published(news.record)
                self._group.create_task(self._load_ahead([key_of(news.record)]))
            case VersionRetired():
                self._library.retired(VersionKey(news.adapter, news.version))
            case AdapterDeleted():
                self._library.deleted(news.adapter)

    def _hear_table(self, table: VersionTable) -> None:
        """Load the newest version of each adapter that is new here, as its event would have done.

        After a start those are all, so as many as there is room for; the rest load on demand.
        """
        new = self._library.table(table.records)
        newest = {key.adapter: key for key in sorted(new, key=lambda key: key.number)}
        ahead = list(newest.values())[-self._config.sampler.max_loaded :]
        self._group.create_task(self._load_ahead(ahead))

    async def _load_ahead(self, keys: list[VersionKey]) -> None:
        for key in keys:
            try:
                async with self._ahead, self._library.pinned(key), self._library.loaded(key):
                    pass
            except LoractlError as error:
                # The broker has been told; whoever asks for the version reads it again.
                log.info("version.not_loaded_ahead", adapter=key.adapter, error=error.message)

    # --- requests --------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            for envelope in await self._link.receive(_RECEIVE_S):
                self._dispatch(envelope)

    def _dispatch(self, envelope: Envelope) -> None:
        if isinstance(envelope.body, Drain):
            self.stop()
            return
        if self._stopping.is_set():
            self._link.reply(envelope, failed(_stopping()))
            return
        task = self._group.create_task(self._answer(envelope))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _answer(self, envelope: Envelope) -> None:
        """The boundary: whatever happens to a request, it gets exactly one last answer."""
        bound = log.bind(tenant=envelope.tenant, request_id=envelope.request)
        answer: Message
        try:
            answer = await self._carried_out(envelope)
        except LoractlError as error:
            if isinstance(error, EngineFailed):
                self._doubt.set()
            bound.info("request.failed", code=error.code, error=error.message)
            answer = failed(error)
        except asyncio.CancelledError:
            self._link.reply(envelope, failed(_stopping()))
            raise
        except Exception:  # noqa: BLE001 - our bug: logged, and the client reads `internal`
            bound.exception("request.crashed")
            answer = failed(Internal("the sampler failed on this request; its log says why"))
        self._link.reply(envelope, answer)

    async def _carried_out(self, envelope: Envelope) -> Message:
        match envelope.body:
            case Sample() as sample:
                return await self._sample(envelope, sample)
            case Abort(target=target):
                if sample_under_way := self._samples.get((envelope.tenant, target)):
                    await sample_under_way.abort()
                return Done()
            case Echo(payload=payload):
                return Echoed(payload=payload)
            case other:
                raise NotSupported(f"a sampler does not take {other.kind!r} requests")

    async def _sample(self, envelope: Envelope, sample: Sample) -> Message:
        name = RequestId(str(next(self._names)))
        plan = plan_sample(sample, name, self._facts, fresh_seed=secrets.randbits(63))
        answering = Answering(
            plan,
            envelope.tenant,
            engines=self._engines,
            library=self._library,
            tokenizer=self._tokenizer,
            stream=lambda chunk: self._stream(envelope, chunk),
        )
        key = (envelope.tenant, envelope.request)
        self._samples[key] = answering
        try:
            return await answering.run()
        finally:
            del self._samples[key]

    def _stream(self, envelope: Envelope, chunk: SampleChunk) -> None:
        self._link.reply(envelope, chunk, last=False)

    # --- engines, and the end --------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after the engines every second, and at once when a request saw one die."""
        while True:
            try:
                async with asyncio.timeout(_HEALTH_CHECK_S):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            self._doubt.clear()
            await self._engines.check()

    def _engine_lost(self, name: EngineName) -> None:
        self._library.lost(name)

    async def _finish(self) -> None:
        """Let what is in hand end if it ends soon. The rest is answered when its task is cancelled."""
        log.info("sampler.stopping", requests=len(self._requests))
        if self._requests:
            await asyncio.wait(self._requests, timeout=_FINISH_SHARE * self._config.daemon.stop_timeout_s)

    async def _close_engines(self) -> None:
        await _within(_CLOSE_SHARE * self._config.daemon.stop_timeout_s, self._engines.close())


def _stopping() -> ActorStopping:
    return ActorStopping("the sampler is stopping: send the request once more")


async def _within(timeout_s: float, work: Coroutine[object, object, None]) -> None:
    """Give up waiting in time: whoever ends the process ends the children that are left."""
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        log.warning("engine.close_timed_out", timeout_s=timeout_s)
