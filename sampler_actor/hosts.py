"""Keeps engines running: starts one when it is first needed, and builds it anew when it died."""

import asyncio
from collections.abc import Callable

import structlog

from ..bus.errors import EngineFailed
from ..bus.messages import EngineName, LoraSpec
from .engine import Engine
from .gate import Gate
from .routing import EngineChoice, Route, route_base, route_version

log = structlog.get_logger()

Build = Callable[[EngineName], Engine]


class EngineHost:
    """One engine through all its lives. on_lost is called when it died, before the next one starts."""

    def __init__(
        self, name: EngineName, build: Build, *, places: int, on_lost: Callable[[EngineName], None]
    ) -> None:
        self.name = name
        self.gate = Gate(places)
        self.probes = Gate(1)
        self._build = build
        self._on_lost = on_lost
        self._engine: Engine | None = None
        self._starting: asyncio.Task[Engine] | None = None
        self._closed = False

    async def engine(self) -> Engine:
        """The running engine; starts one, or waits for the one that is starting.

        Raises:
            EngineFailed: it could not be started.
        """
        if self._engine is not None:
            return self._engine
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(None))
        # Shielded: one caller that is cancelled must not stop what others wait for.
        return await asyncio.shield(self._starting)

    def runs(self, engine: Engine) -> bool:
        return self._engine is engine

    async def check(self) -> None:
        """Build the engine anew if it died. Whoever needs it meanwhile waits in `engine`.

        Raises:
            EngineFailed: it could not be built anew.
        """
        suspect = self._engine
        if suspect is None or self._closed or await suspect.healthy() or self._engine is not suspect:
            return
        log.error("engine.died", engine=self.name)
        self._engine = None
        self._starting = asyncio.create_task(self._start(suspect))
        self._on_lost(self.name)
        await self.engine()

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._engine is not None:
            await self._engine.close()

    async def _start(self, dead: Engine | None) -> Engine:
        engine = None
        try:
            if dead is not None:
                await dead.close()
            # Importing an engine's library takes seconds, in which other requests go on.
            engine = await asyncio.to_thread(self._build, self.name)
            await engine.start()
        except EngineFailed as error:
            log.warning("engine.start_failed", engine=self.name, error=error.message)
            raise
        except asyncio.CancelledError:
            if engine is not None:
                await engine.close()
            raise
        finally:
            self._starting = None
        self._engine = engine
        log.info("engine.started", engine=self.name)
        return engine


class Engines:
    """The engines of this sampler. The base model runs on one; another starts when a version needs it."""

    def __init__(
        self,
        build: Build,
        *,
        choice: EngineChoice,
        vllm_missing: str,
        places: int,
        on_lost: Callable[[EngineName], None],
    ) -> None:
        self._build = build
        self._choice = choice
        self._vllm_missing = vllm_missing
        self._places = places
        self._on_lost = on_lost
        self._hosts: dict[EngineName, EngineHost] = {}

    @property
    def base(self) -> Route:
        return route_base(self._choice, vllm_missing=self._vllm_missing)

    def route(self, lora: LoraSpec) -> Route:
        return route_version(lora, self._choice, vllm_missing=self._vllm_missing)

    def host(self, name: EngineName) -> EngineHost:
        if name not in self._hosts:
            self._hosts[name] = EngineHost(name, self._build, places=self._places, on_lost=self._on_lost)
        return self._hosts[name]

    async def start(self) -> None:
        """Start the engine of the base model; with "auto", the embedded one where vLLM fails.

        Raises:
            EngineFailed: no engine that the settings allow can be started.
        """
        try:
            await self.host(self.base.engine).engine()
        except EngineFailed as error:
            if self._choice != "auto" or self._vllm_missing:
                raise
            self._vllm_missing = error.message
            await self.host(self.base.engine).engine()

    async def check(self) -> None:
        for host in list(self._hosts.values()):
            await host.check()

    async def close(self) -> None:
        await asyncio.gather(*(host.close() for host in self._hosts.values()))
