"""Engines kept alive: started once, rebuilt when they die, replaced where they cannot run at all."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from loractl.bus.errors import EngineFailed
from loractl.bus.ids import TenantId
from loractl.bus.messages import EngineName, VersionRecord
from loractl.sampler_actor.engine import PLAIN_WISH, Delta, Engine, Job, Scores, ScoreWish, VersionKey
from loractl.sampler_actor.gate import Gate
from loractl.sampler_actor.hosts import Engines
from loractl.sampler_actor.routing import EngineChoice
from loractl.sampler_actor.scoring import empty_rows, scores_of

ALICE = TenantId("alice")


class StubEngine:
    """An engine that computes nothing, and starts or lives as the test says."""

    def __init__(self, name: EngineName, *, starts: bool = True) -> None:
        self._name = name
        self._starts = starts
        self.alive = False
        self.closed = False

    @property
    def name(self) -> EngineName:
        return self._name

    async def start(self) -> None:
        await asyncio.sleep(0)
        if not self._starts:
            raise EngineFailed(f"{self._name} did not start: no library")
        self.alive = True

    async def add(self, record: VersionRecord) -> int:
        return record.modules

    async def remove(self, key: VersionKey) -> None:
        pass

    async def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        yield Delta(tokens=(), logprobs=(), finished="length")

    async def abort(self, job_key: str) -> None:
        pass

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        return scores_of(wish, *empty_rows(wish, len(prompt) - 1), cached=0)

    async def healthy(self) -> bool:
        return self.alive

    async def close(self) -> None:
        self.closed = True


class Workshop:
    """Builds engines and keeps them. broken: names of engines that will not start."""

    def __init__(self, choice: EngineChoice = "auto", *broken: EngineName) -> None:
        self.broken = set(broken)
        self.built: list[StubEngine] = []
        self.lost: list[EngineName] = []
        self.engines = Engines(
            self._build, choice=choice, vllm_missing="", places=2, on_lost=self.lost.append
        )

    def _build(self, name: EngineName) -> Engine:
        engine = StubEngine(name, starts=name not in self.broken)
        self.built.append(engine)
        return engine


def test_an_engine_is_started_once_however_many_wait_for_it():
    async def many_wait() -> tuple[Workshop, list[Engine]]:
        workshop = Workshop()
        host = workshop.engines.host("vllm")
        return workshop, await asyncio.gather(*(host.engine() for _ in range(5)))

    workshop, engines = asyncio.run(many_wait())

    assert len(workshop.built) == 1
    assert set(map(id, engines)) == {id(workshop.built[0])}


def test_one_who_gives_up_waiting_does_not_stop_the_start():
    async def one_gives_up() -> Engine:
        host = Workshop().engines.host("vllm")
        impatient = asyncio.create_task(host.engine())
        patient = asyncio.create_task(host.engine())
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    assert asyncio.run(one_gives_up()).name == "vllm"


def test_a_dead_engine_is_closed_and_built_anew():
    async def die() -> tuple[Workshop, Engine]:
        workshop = Workshop()
        await workshop.engines.start()
        workshop.built[0].alive = False
        await asyncio.gather(workshop.engines.check(), workshop.engines.check())
        return workshop, await workshop.engines.host("vllm").engine()

    workshop, engine = asyncio.run(die())

    first, second = workshop.built
    assert first.closed
    assert engine is second
    assert workshop.lost == ["vllm"], "told once"


def test_a_healthy_engine_is_left_alone():
    async def check() -> Workshop:
        workshop = Workshop()
        await workshop.engines.start()
        await workshop.engines.check()
        return workshop

    workshop = asyncio.run(check())

    assert len(workshop.built) == 1
    assert workshop.lost == []


def test_an_engine_that_cannot_be_built_anew_is_reported():
    async def die_for_good() -> None:
        workshop = Workshop("vllm")
        await workshop.engines.start()
        workshop.built[0].alive = False
        workshop.broken.add("vllm")
        await workshop.engines.check()

    with pytest.raises(EngineFailed, match="did not start"):
        asyncio.run(die_for_good())


def test_where_vllm_does_not_start_the_embedded_engine_takes_over_and_says_why():
    workshop = Workshop("auto", "vllm")

    asyncio.run(workshop.engines.start())

    assert workshop.engines.base.engine == "torch"
    assert "no library" in workshop.engines.base.reason


def test_a_vllm_that_was_asked_for_by_name_must_start():
    with pytest.raises(EngineFailed):
        asyncio.run(Workshop("vllm", "vllm").engines.start())


def test_without_any_engine_there_is_no_sampler():
    with pytest.raises(EngineFailed, match="torch did not start"):
        asyncio.run(Workshop("auto", "vllm", "torch").engines.start())


def test_a_cancelled_turn_is_given_to_the_next():
    async def three() -> list[str]:
        gate, order, release = Gate(1), [], asyncio.Event()

        async def take(name: str) -> None:
            async with gate.turn(ALICE):
                order.append(name)
                await release.wait()

        first, second, third = [asyncio.create_task(take(name)) for name in "abc"]
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.wait([first, second])
        release.set()
        await third
        return order

    assert asyncio.run(three()) == ["a", "c"]
