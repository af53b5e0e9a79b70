"""A bridge that takes up what another left: the same request ids on the bus, and nothing twice."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from loractl.bus.errors import DaemonGone
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import (
    CreateAdapter,
    DeleteCheckpoint,
    LoadCheckpoint,
    Message,
    OptimStep,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    StepResult,
)
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, client, rest
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.run_again import run_again


class DyingBus(InMemoryBus):
    """The daemon's side, which outlives bridges. dies_behind: kinds that are carried out, but whose answer
    finds nobody any more."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_behind: tuple[type[Message], ...] = ()
        self.died = asyncio.Event()

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Any:
        answered = super().submit(body, request=request, tenant=tenant)
        return Lost(self, answered) if isinstance(body, self.dies_behind) else answered

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if isinstance(body, OptimStep):
            return StepResult(applied=True, step=1, grad_norm=1.0, learning_rate=1.0, tokens=1)
        return super()._answer(body, tenant)


class Lost:
    waits_for = ""
    cause = "others"

    def __init__(self, bus: DyingBus, answered: Any) -> None:
        self._bus = bus
        self._answered = answered
        self.request = answered.request

    async def result(self, timeout_s: float | None = None) -> Message:
        try:
            await self._answered.result(timeout_s)
        finally:
            self._bus.died.set()
        raise DaemonGone("nobody hears it")


def two_lives(
    state: Path,
    before: Callable[[Bridge, DyingBus, User], Awaitable[Any]],
    after: Callable[[Bridge, DyingBus, User, Any], Awaitable[None]],
) -> None:
    """A bridge, then another one on what it left."""

    async def told() -> None:
        bus = DyingBus()
        async with bridge_on(state, bus) as bridge:
            user = User(bridge, "ann")
            left = await before(bridge, bus, user)
        bus.dies_behind = ()
        async with bridge_on(state, bus) as bridge:
            await run_again(bridge)
            user.http = client(bridge, user.key)
            await after(bridge, bus, user, left)

    asyncio.run(asyncio.wait_for(told(), 60))


async def left(user: User, bus: DyingBus, path: str, /, **body: Any) -> str:
    """Start work whose answer gets lost; its future's id."""
    started = await user.post(path, **body)
    await bus.died.wait()
    request_id: str = started["request_id"]
    return request_id


async def result(user: User, request_id: str) -> Any:
    return await user.post("/retrieve_future", request_id=request_id)


def test_an_adapter_is_made_once_and_with_the_seed_that_was_drawn(tmp_path: Path) -> None:
    async def before(_: Bridge, bus: DyingBus, user: User) -> str:
        session = await user.session()
        bus.dies_behind = (CreateAdapter,)
        body = {"base_model": "tiny", "lora_config": {"rank": 8}}
        return await left(user, bus, "/create_model", session_id=session, model_seq_id=0, **body)

    async def after(bridge: Bridge, bus: DyingBus, user: User, request_id: str) -> None:
        model = (await result(user, request_id))["model_id"]

        (adapter,) = bus.adapters.values()
        assert bus.kinds().count("create_adapter") == 1
        assert bridge.runs.owned(TenantId("ann"), model).lora == adapter.details.lora

    two_lives(tmp_path, before, after)


def test_a_save_whose_answer_was_lost_is_recorded_once_under_its_name(tmp_path: Path) -> None:
    async def before(_: Bridge, bus: DyingBus, user: User) -> tuple[str, str]:
        run = await user.run()
        bus.dies_behind = (SaveCheckpoint,)
        return run, await left(user, bus, "/save_weights", model_id=run, seq_id=1, path="a")

    async def after(_: Bridge, bus: DyingBus, user: User, started: tuple[str, str]) -> None:
        run, request_id = started

        assert await result(user, request_id) == {
            "type": "save_weights",
            "path": f"tinker://{run}/weights/a",
        }
        assert bus.kinds().count("save_checkpoint") == 1
        taken = await user.work("/save_weights", model_id=run, seq_id=2, path="a")
        assert "exists already" in taken["error"]

    two_lives(tmp_path, before, after)


def test_a_refusal_stands_though_its_reason_is_gone(tmp_path: Path) -> None:
    """The name was taken then and is free now: the number was used up for a refusal all the same."""

    async def before(_: Bridge, bus: DyingBus, user: User) -> tuple[str, str]:
        run = await user.run()
        path = await user.save(run, 1, "a")
        bus.dies_behind = (RefuseOperation,)
        refused = await left(user, bus, "/save_weights", model_id=run, seq_id=2, path="a")
        await user.ask("DELETE", rest(path))
        return path, refused

    async def after(_: Bridge, bus: DyingBus, user: User, started: tuple[str, str]) -> None:
        _, request_id = started

        assert "exists already" in (await result(user, request_id))["error"]
        assert bus.kinds().count("save_checkpoint") == 1

    two_lives(tmp_path, before, after)


def test_an_unnamed_snapshot_is_published_once(tmp_path: Path) -> None:
    async def before(_: Bridge, bus: DyingBus, user: User) -> str:
        run = await user.run()
        bus.dies_behind = (PublishAdapter,)
        body = {"model_id": run, "seq_id": 1, "sampling_session_seq_id": 0, "kind": "inflight"}
        return await left(user, bus, "/save_weights_for_sampler", **body)

    async def after(_: Bridge, bus: DyingBus, user: User, request_id: str) -> None:
        assert (await result(user, request_id))["sampling_session_id"]
        (adapter,) = bus.adapters.values()
        assert [*adapter.versions] == [1]

    two_lives(tmp_path, before, after)


def test_a_run_that_was_being_loaded_is_loaded_once(tmp_path: Path) -> None:
    async def before(_: Bridge, bus: DyingBus, user: User) -> str:
        path = await user.save(await user.run(), 1, "a")
        session = await user.session()
        bus.dies_behind = (LoadCheckpoint,)
        body = {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}
        return await left(user, bus, "/load_weights", **body)

    async def after(_: Bridge, bus: DyingBus, user: User, request_id: str) -> None:
        model = (await result(user, request_id))["model_id"]

        assert len(bus.adapters) == 2
        assert (await user.work("/optim_step", model_id=model, seq_id=1))["metrics"]["applied"] == 1

    two_lives(tmp_path, before, after)


def test_a_copy_is_one_copy(tmp_path: Path) -> None:
    async def before(_: Bridge, bus: DyingBus, user: User) -> dict[str, Any]:
        path = await user.save(await user.run(), 1, "a")
        body = {"source_path": path, "destination_project_id": "p"}
        bus.dies_behind = (SaveCheckpoint,)
        headers = {"x-idempotency-key": "once"}
        asking = asyncio.create_task(user.http.post("/api/v1/copy_weights", json=body, headers=headers))
        await bus.died.wait()
        asking.cancel()
        return body

    async def after(_: Bridge, bus: DyingBus, user: User, body: dict[str, Any]) -> None:
        headers = {"x-idempotency-key": "once"}
        copies = [await user.ask("POST", "/copy_weights", json=body, headers=headers) for _ in range(2)]

        assert copies[0] == copies[1]
        assert bus.kinds().count("save_checkpoint") == 2
        assert len(bus.adapters) == 2

    two_lives(tmp_path, before, after)


def test_a_deletion_that_was_cut_short_is_finished_by_its_repeat(tmp_path: Path) -> None:
    key = {"x-idempotency-key": "gone"}

    async def before(bridge: Bridge, bus: DyingBus, user: User) -> str:
        path = await user.save(await user.run(), 1, "a")

        ann = TenantId("ann")

        async def cut_short() -> None:
            await bridge.bus.request(DeleteCheckpoint(adapter=next(iter(bus.adapters)), name="a"), tenant=ann)
            bridge.store.delete(bridge.checkpoints.owned(TenantId("ann"), path))
            raise DaemonGone("before the word that it is done is written")

        what = f"DELETE /api/v1{rest(path)}"
        try:
            await bridge.repeats.once(TenantId("ann"), what, "gone", check=tuple, change=cut_short)
        except DaemonGone:
            return path
        raise AssertionError

    async def after(_: Bridge, bus: DyingBus, user: User, path: str) -> None:
        assert (await user.ask("DELETE", rest(path), headers=key))["tinker_path"] == path
        await user.ask("DELETE", rest(path), 404, headers={"x-idempotency-key": "another"})

    two_lives(tmp_path, before, after)


def test_operations_without_numbers_keep_their_places(tmp_path: Path) -> None:
    async def before(bridge: Bridge, bus: DyingBus, user: User) -> str:
        made = await user.http.post("/add_lora", json={"rank": 4, "seed": 1})
        model: str = made.json()["model_id"]
        await user.work("/optim_step", model_id=model)
        bus.dies_behind = (OptimStep,)
        return await left(user, bus, "/optim_step", model_id=model)

    async def after(_: Bridge, bus: DyingBus, user: User, request_id: str) -> None:
        assert (await result(user, request_id))["metrics"]["applied"] == 1

        places = [(body.lane, body.seq) for _, body in bus.asked if isinstance(body, OptimStep)]
        assert len({lane for lane, _ in places}) == 1
        assert len({*places}) == len(places)

    two_lives(tmp_path, before, after)
