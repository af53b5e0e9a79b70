"""Has versions loaded where requests need them: performs what `LoadedVersions` decides.

A version counts as loaded only after three checks: its files are those that were published, every
module of the adapter was bound, and on the probe the engine says what the trainer said. Whoever waits
for a version that fails one of them reads why.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager

import numpy as np
import structlog

from ..bus.errors import EngineFailed, LoractlError, PublishFailed
from ..bus.identities import NO_TENANT
from ..bus.ids import AdapterId
from ..bus.messages import EngineName, Message, VersionRecord, VersionReleased, VersionServed
from .engine import Engine, VersionKey, key_of
from .hosts import EngineHost, Engines
from .routing import Route
from .version_files import check_files
from .versions import Decision, Load, LoadedVersions, Release, Remove

log = structlog.get_logger()

# What a request waits for the event that announces its version: the two travel on different sockets.
_NEWS_TIMEOUT_S = 2.0
_ATTEMPTS = 2

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]


class Library:
    """actor: our name in reports. tolerance: of the probe's logprobs. ask: have the table sent again."""

    def __init__(
        self,
        engines: Engines,
        *,
        actor: str,
        context_tokens: int,
        max_loaded: int,
        tolerance: float,
        spawn: Spawn,
        report: Callable[[Message], None],
        ask: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._actor = actor
        self._context_tokens = context_tokens
        self._tolerance = tolerance
        self._spawn = spawn
        self._report = report
        self._ask = ask
        self._versions = LoadedVersions(max_loaded)
        # What is being done to a version now, and why its last load failed.
        self._tasks: dict[VersionKey, asyncio.Task[None]] = {}
        self._failures: dict[VersionKey, LoractlError] = {}
        self._news = asyncio.Event()

    # --- what the broker says --------------------------------------------------------------------

    def table(self, records: Iterable[VersionRecord]) -> list[VersionKey]:
        """Take in the whole truth. Returns the versions that were new here."""
        new, decisions = self._versions.reconcile(records)
        self._perform(decisions)
        self._tell_waiters()
        return [key_of(record) for record in new]

    def published(self, record: VersionRecord) -> None:
        self._versions.learn([record])
        self._tell_waiters()

    def retired(self, key: VersionKey) -> None:
        self._perform(self._versions.retire(key))

    def deleted(self, adapter: AdapterId) -> None:
        self._perform(self._versions.delete(adapter))

    def lost(self, name: EngineName) -> None:
        """An engine died: what it held is loaded into the next one."""
        loaded = [key for key in self._versions.in_memory() if self._versions.phase(key) == "loaded"]
        keys = [key for key in loaded if self._engine_name(key) == name]
        self._perform(self._versions.engine_lost(keys))

    # --- what requests need ----------------------------------------------------------------------

    @asynccontextmanager
    async def pinned(self, key: VersionKey) -> AsyncIterator[None]:
        """Hold a version, loaded or not: it stays on disk until the block ends.

        Raises:
            VersionNotFound: it does not exist, or was retired.
        """
        if not self._versions.knows(key):
            await self._hear_of(key)
        self._versions.pin(key)
        try:
            yield
        finally:
            self._perform(self._versions.unpin(key))

    @asynccontextmanager
    async def loaded(self, key: VersionKey) -> AsyncIterator[Engine]:
        """The engine that has this pinned version loaded, and keeps it so until the block ends.

        Raises:
            PublishFailed: the version cannot be served; says why.
            EngineFailed: its engine does not start.
        """
        self._perform(self._versions.need(key))
        try:
            yield await self._engine_with(key)
        finally:
            self._perform(self._versions.done(key))

    async def _engine_with(self, key: VersionKey) -> Engine:
        while True:
            while task := self._tasks.get(key):
                await asyncio.wait([task])
            if self._versions.phase(key) != "loaded":
                raise self._failures[key]
            engine = await self.host(key).engine()
            # It may have died while we waited for it; then the version is being loaded again.
            if self._versions.phase(key) == "loaded":
                return engine

    def host(self, key: VersionKey) -> EngineHost:
        return self._engines.host(self._engine_name(key))

    def _engine_name(self, key: VersionKey) -> EngineName:
        return self._engines.route(self._versions.record(key).lora).engine

    async def _hear_of(self, key: VersionKey) -> None:
        """Wait a little for the news that tells of a version; without it, `pin` refuses."""
        self._ask()
        try:
            async with asyncio.timeout(_NEWS_TIMEOUT_S):
                while not self._versions.knows(key):
                    await self._news.wait()
        except TimeoutError:
            log.info("version.unheard_of", adapter=key.adapter, version=key.number)

    def _tell_waiters(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # --- performing ------------------------------------------------------------------------------

    def _perform(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Load(record):
                    self._tasks[key_of(record)] = self._spawn(self._load(record))
                case Remove(key):
                    self._tasks[key] = self._spawn(self._remove(key))
                case Release(key):
                    self._failures.pop(key, None)
                    self._report(VersionReleased(actor=self._actor, adapter=key.adapter, version=key.number))

    async def _load(self, record: VersionRecord) -> None:
        key = key_of(record)
        route = self._engines.base
        try:
            route = self._engines.route(record.lora)
            modules, difference = await self._checked(record, self._engines.host(route.engine))
        except LoractlError as error:
            log.warning("version.refused", adapter=key.adapter, version=key.number, error=error.message)
            self._report(self._served(record, route, 0, float("nan"), error=error.message))
            self._failures[key] = error
            del self._tasks[key]
            self._perform(self._versions.load_failed(key))
            return
        self._failures.pop(key, None)
        log.info("version.loaded", adapter=key.adapter, version=key.number, engine=route.engine)
        self._report(self._served(record, route, modules, difference))
        del self._tasks[key]
        self._perform(self._versions.loaded(key))

    async def _remove(self, key: VersionKey) -> None:
        host = self.host(key)
        try:
            await (await host.engine()).remove(key)
        except EngineFailed:
            # A dead engine holds nothing, and the next one never heard of it.
            log.info("version.gone_with_engine", adapter=key.adapter, version=key.number)
        log.info("version.removed", adapter=key.adapter, version=key.number)
        del self._tasks[key]
        self._perform(self._versions.removed(key))

    async def _checked(self, record: VersionRecord, host: EngineHost) -> tuple[int, float]:
        """Add a version and see that it is right. Returns modules bound and the probe's difference."""
        await asyncio.to_thread(check_files, record)
        for _ in range(_ATTEMPTS):
            engine = await host.engine()
            try:
                result = await self._added(record, engine, host)
            except EngineFailed:
                await host.check()
                continue
            # If it died since, what was added is lost with it.
            if host.runs(engine):
                return result
        raise PublishFailed(f"the engine died each of {_ATTEMPTS} times this version was loaded")

    async def _added(self, record: VersionRecord, engine: Engine, host: EngineHost) -> tuple[int, float]:
        key = key_of(record)
        modules = await engine.add(record)
        try:
            if modules != record.modules:
                raise PublishFailed(f"only {modules} of its {record.modules} modules were bound")
            difference = await self._probed(record, engine, host)
            if difference > self._tolerance:
                raise PublishFailed(
                    f"its logprobs differ from the trainer's by {difference:.3g} on the probe, "
                    f"more than publish.probe_tolerance ({self._tolerance:g})"
                )
        except EngineFailed:
            raise  # a dead engine holds nothing
        except LoractlError:
            await engine.remove(key)
            raise
        return modules, difference

    async def _probed(self, record: VersionRecord, engine: Engine, host: EngineHost) -> float:
        """Largest difference to the trainer's logprobs on the probe; NaN without one."""
        # A prefix is scored the same as within the whole, so a probe too long can be cut.
        probe = record.probe_tokens[: self._context_tokens - 1]
        if len(probe) < 2:
            return float("nan")
        # Not through the samples' gate: samples that wait for this very load may hold all its places.
        async with host.probes.turn(NO_TENANT):
            logprobs = (await engine.score(key_of(record), probe)).logprobs
        expected = np.array(record.probe_logprobs[: len(probe) - 1], np.float32)
        difference = float(np.abs(logprobs[1:] - expected).max())
        return difference if np.isfinite(difference) else float("inf")

    def _served(
        self, record: VersionRecord, route: Route, modules: int, difference: float, *, error: str = ""
    ) -> VersionServed:
        return VersionServed(
            actor=self._actor,
            adapter=record.adapter,
            version=record.number,
            engine=route.engine,
            engine_reason=route.reason,
            modules_bound=modules,
            probe_max_abs_diff=difference,
            error=error,
        )
