"""What clients over HTTP read while their work waits, and when they are told to slow down."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.config import load_config
from loractl.bus.errors import ActorRestarting, QuotaExceeded
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import CreateAdapter, Message, OptimStep, StepResult, WaitCause
from loractl.tests.tinker_bridge.bus_in_memory import Answered, InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User
from loractl.tinker_bridge.bridge import Bridge, open_bridge
from loractl.tinker_bridge.training import Training

ADAM = {"learning_rate": 1e-3}


@dataclass
class Held:
    """A request that waits until the test lets it go."""

    answer: Answered
    waits_for: str = ""
    cause: WaitCause = "others"
    free: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def request(self) -> RequestId:
        return self.answer.request

    async def result(self, timeout_s: float | None = None) -> Message:
        await self.free.wait()
        return await self.answer.result(timeout_s)


class SlowBus(InMemoryBus):
    """Holds every request of some kinds. full: it has no room for so many of them before that."""

    def __init__(self, *kinds: type[Message], full: int = 0) -> None:
        super().__init__()
        self.kinds_held = kinds
        self.held: asyncio.Queue[Held] = asyncio.Queue()
        self.full = full

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Any:
        answer = super().submit(body, request=request, tenant=tenant)
        if not isinstance(body, self.kinds_held):
            return answer
        if self.full:
            self.full -= 1
            return Refused()
        held = Held(answer)
        self.held.put_nowait(held)
        return held

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if isinstance(body, OptimStep):
            return StepResult(applied=True, step=1, grad_norm=0.5, learning_rate=1e-3, tokens=3)
        return super()._answer(body, tenant)


class Refused:
    request = RequestId("r")
    waits_for = ""
    cause: WaitCause = "others"

    async def result(self, timeout_s: float | None = None) -> Message:
        raise QuotaExceeded("900 bytes wait already")


@asynccontextmanager
async def served(state: Path, bus: SlowBus, *overrides: str) -> AsyncIterator[tuple[Bridge, User]]:
    StateLayout(state).root.mkdir(parents=True, exist_ok=True)
    base = ["model.path=/models/tiny", "model.name=tiny", "bridge.long_poll_s=1"]
    bridge = open_bridge(load_config(state_dir=str(state), environ={}, overrides=[*base, *overrides]), bus)
    try:
        yield bridge, User(bridge, "ann")
    finally:
        bridge.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def started(user: User, run_id: str, seq: int) -> str:
    body = {"model_id": run_id, "seq_id": seq, "adam_params": ADAM}
    request: str = (await user.post("/optim_step", **body))["request_id"]
    return request


async def polled(user: User, request: str) -> dict[str, Any]:
    answer = await user.http.post(
        "/api/v1/retrieve_future", json={"request_id": request}, headers={"x-stainless-read-timeout": "1"}
    )
    fields: dict[str, Any] = answer.json()
    return fields


@pytest.mark.parametrize(
    ("cause", "state"),
    [("own", "active"), ("others", "paused_capacity"), ("quota", "paused_rate_limit")],
)
def test_a_poll_tells_what_an_operation_waits_for(tmp_path: Path, cause: WaitCause, state: str) -> None:
    async def test() -> None:
        bus = SlowBus(OptimStep)
        async with served(tmp_path, bus) as (_, ann):
            request = await started(ann, await ann.run(), 1)
            held = await bus.held.get()
            held.waits_for, held.cause = "in words", cause

            waiting = await polled(ann, request)

            assert (waiting["queue_state"], waiting["queue_state_reason"]) == (state, "in words")
            held.free.set()
            assert (await ann.post("/retrieve_future", request_id=request))["type"] == "optim_step"

    run(test)


def test_a_restart_of_the_trainer_is_a_pause_that_says_why(tmp_path: Path) -> None:
    class Restarting(SlowBus):
        def submit(self, body: Message, **more: Any) -> Any:
            answer = super().submit(body, **more)
            return Away() if isinstance(body, OptimStep) and self.away else answer

        away = True

    class Away(Refused):
        async def result(self, timeout_s: float | None = None) -> Message:
            raise ActorRestarting("the trainer died while it held this")

    async def test() -> None:
        bus = Restarting()
        async with served(tmp_path, bus) as (_, ann):
            request = await started(ann, await ann.run(), 1)

            waiting = await polled(ann, request)

            assert waiting["queue_state"] == "paused_capacity"
            assert waiting["queue_state_reason"] == "the trainer died while it held this"
            bus.away = False
            while (found := await polled(ann, request))["type"] == "try_again":
                pass
            assert found["type"] == "optim_step"

    run(test)


def test_a_model_that_waits_for_room_says_so_and_is_made_when_there_is(tmp_path: Path) -> None:
    async def test() -> None:
        bus = SlowBus(CreateAdapter)
        async with served(tmp_path, bus) as (_, ann):
            body = {"session_id": await ann.session(), "model_seq_id": 0, "base_model": "tiny"}
            begun = await ann.post("/create_model", **body, lora_config={"rank": 8})
            held = await bus.held.get()
            held.waits_for, held.cause = "4 of at most 4 adapters", "quota"

            waiting = await polled(ann, begun["request_id"])

            assert waiting["queue_state"] == "paused_rate_limit"
            assert "4 of at most 4 adapters" in waiting["queue_state_reason"]
            held.free.set()
            made = await ann.post("/retrieve_future", request_id=begun["request_id"])
            assert made["model_id"] == begun["model_id"]

    run(test)


def test_a_tenant_with_too_many_bytes_under_way_is_told_to_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        bus = SlowBus(OptimStep)
        async with served(tmp_path, bus, "quotas.held_bytes=200") as (bridge, ann):
            model = await ann.run()
            first = await started(ann, model, 1)

            body = {
                "model_id": model,
                "seq_id": 2,
                "adam_params": {**ADAM, "beta1": 0.9},
                "type": "optim_step",
            }
            refused = await ann.http.post("/api/v1/optim_step", json={**body, "_": " " * 200})

            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            assert "200 may be (quotas.held_bytes)" in refused.json()["detail"]
            other = User(bridge, "ben")
            await started(other, await other.run(), 1)  # another tenant's is taken

            held = await bus.held.get()
            held.free.set()
            assert (await ann.post("/retrieve_future", request_id=first))["type"] == "optim_step"
            await started(ann, model, 2)

    run(test)


async def status_of(user: User, model: str, seq: int, size_bytes: int) -> int:
    body = {"model_id": model, "seq_id": seq, "adam_params": ADAM, "_": " " * size_bytes}
    return (await user.http.post("/api/v1/optim_step", json=body)).status_code


def test_the_number_that_a_run_waits_for_is_always_taken_and_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        bus = SlowBus(OptimStep)
        async with served(tmp_path, bus, "quotas.held_bytes=400") as (_, ann):
            model, other = await ann.run(), await ann.run()
            assert await status_of(ann, model, 4, 100) == 200

            assert await status_of(ann, model, 3, 500) == 429  # lower, and not what is waited for
            assert await status_of(ann, other, 1, 500) == 429  # nothing of its run waits for it
            assert await status_of(ann, model, 1, 500) == 200

            for _ in range(2):
                await asyncio.wait_for(bus.held.get(), 30)
            assert await status_of(ann, model, 2, 500) == 429  # 1 is under way, and makes room

    run(test)


def test_what_comes_next_after_an_operation_that_has_ended_is_taken(tmp_path: Path) -> None:
    async def test() -> None:
        bus = SlowBus(OptimStep)
        async with served(tmp_path, bus, "quotas.held_bytes=400") as (_, ann):
            model = await ann.run()
            first = await started(ann, model, 1)
            (await bus.held.get()).free.set()
            assert (await ann.post("/retrieve_future", request_id=first))["type"] == "optim_step"
            assert await status_of(ann, model, 3, 100) == 200

            assert await status_of(ann, model, 2, 500) == 200

    run(test)


def test_an_operation_that_the_daemon_has_no_room_for_is_sent_again_and_keeps_its_number(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        bus = SlowBus(OptimStep, full=3)
        async with served(tmp_path, bus) as (bridge, _):
            training = Training(bus, bridge.sessions, bridge.runs, bridge.futures, again_s=0.0)
            ann = User(replace(bridge, training=training), "bob")
            model = await ann.run()

            request = await started(ann, model, 1)
            held = await bus.held.get()

            assert bus.full == 0
            held.free.set()
            assert (await ann.post("/retrieve_future", request_id=request))["type"] == "optim_step"

    run(test)
