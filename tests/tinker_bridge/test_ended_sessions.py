"""What is under way when a session ends: it comes to an end, and nothing of it is left behind."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from loractl.bus.errors import Aborted, LaneLost
from loractl.bus.ids import TenantId
from loractl.bus.messages import Message, OptimStep
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.housekeeping import one_round
from loractl.tinker_bridge.records import RunRecord


class SlowBus(InMemoryBus):
    """held: kinds that are carried out at once, and answered when `let_go` is set. lost: the trainer
    restarted, and takes no operation."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.held = held
        self.let_go = asyncio.Event()
        self.came = asyncio.Condition()
        self.lost = False

    async def request(
        self, body: Message, *, timeout_s: float | None = None, tenant: TenantId | None = None
    ) -> Message:
        if self.lost and isinstance(body, OptimStep):
            raise LaneLost("restarted")
        answer = await super().request(body, timeout_s=timeout_s, tenant=tenant)
        async with self.came:
            self.came.notify_all()
        if body.kind in self.held:
            await self.let_go.wait()
        return answer


def play(tmp_path: Path, story: Callable[[Bridge, SlowBus, User], Awaitable[None]], *held: str) -> None:
    async def told() -> None:
        bus = SlowBus(*held)
        async with bridge_on(tmp_path, bus) as bridge:
            await story(bridge, bus, User(bridge, "ann"))

    asyncio.run(asyncio.wait_for(told(), 60))


async def begun(bus: SlowBus, kind: str) -> None:
    async with bus.came:
        await bus.came.wait_for(lambda: kind in bus.kinds())


async def finish(user: User, session: str) -> None:
    await user.post(f"/sessions/{session}/finish", reason={"type": "interrupted"})


async def result(user: User, started: dict[str, Any]) -> Any:
    return await user.post("/retrieve_future", request_id=started["request_id"])


def test_an_adapter_that_was_being_made_when_its_session_ended_is_freed(tmp_path: Path) -> None:
    async def story(bridge: Bridge, bus: SlowBus, user: User) -> None:
        session = await user.session()
        body = {"base_model": "tiny", "lora_config": {"rank": 8}}
        started = await user.post("/create_model", session_id=session, model_seq_id=0, **body)
        await begun(bus, "create_adapter")

        await finish(user, session)
        await one_round(bridge)
        bus.let_go.set()
        await result(user, started)
        await one_round(bridge)

        assert bus.adapters == {}

    play(tmp_path, story, "create_adapter")


def test_a_run_that_was_being_loaded_when_its_session_ended_is_freed(tmp_path: Path) -> None:
    async def story(bridge: Bridge, bus: SlowBus, user: User) -> None:
        source = await user.run()
        path = await user.save(source, 1, "kept")
        session = await user.session()
        started = await user.post(
            "/load_weights", session_id=session, model_seq_id=0, path=path, optimizer=True
        )
        await begun(bus, "load_checkpoint")

        await finish(user, session)
        bus.let_go.set()
        await result(user, started)
        await one_round(bridge)

        assert [each.details.name for each in bus.adapters.values()] == [source]

    play(tmp_path, story, "load_checkpoint")


def test_an_unnamed_snapshot_that_comes_after_its_sessions_end_goes_again(tmp_path: Path) -> None:
    async def story(bridge: Bridge, bus: SlowBus, user: User) -> None:
        session = await user.session()
        run = await user.run(session)
        await user.save(run, 1, "kept")
        started = await user.post(
            "/save_weights_for_sampler", model_id=run, seq_id=2, sampling_session_seq_id=0
        )
        await begun(bus, "publish_adapter")

        await finish(user, session)
        await one_round(bridge)
        bus.let_go.set()
        await result(user, started)
        await one_round(bridge)

        (adapter,) = bus.adapters.values()
        assert adapter.versions == {}
        assert not adapter.loaded

    play(tmp_path, story, "publish_adapter")


def test_a_save_that_was_under_way_when_its_session_ended_keeps_its_adapter(tmp_path: Path) -> None:
    async def story(bridge: Bridge, bus: SlowBus, user: User) -> None:
        session = await user.session()
        run = await user.run(session)
        started = await user.post("/save_weights_for_sampler", model_id=run, seq_id=1, path="last")
        await begun(bus, "publish_adapter")

        await finish(user, session)
        await one_round(bridge)
        unloaded = [each.loaded for each in bus.adapters.values()]
        bus.let_go.set()
        path = (await result(user, started))["path"]
        await one_round(bridge)

        assert unloaded == [False]
        assert len(bus.adapters) == 1
        record = bridge.store.find(RunRecord, run)
        assert record is not None
        assert record.state == "unloaded"
        assert (await user.post("/weights_info", tinker_path=path))["lora_rank"] == 8

    play(tmp_path, story, "publish_adapter")


def test_an_adapter_goes_when_the_save_that_kept_it_failed(tmp_path: Path) -> None:
    class Aborting(SlowBus):
        async def request(self, body: Message, **more: Any) -> Message:
            answer = await super().request(body, **more)
            if body.kind in self.held:
                raise Aborted("the adapter was unloaded")
            return answer

    async def told() -> None:
        bus = Aborting("save_checkpoint")
        async with bridge_on(tmp_path, bus) as bridge:
            user = User(bridge, "ann")
            session = await user.session()
            run = await user.run(session)
            started = await user.post("/save_weights", model_id=run, seq_id=1, path="last")
            await begun(bus, "save_checkpoint")

            await finish(user, session)
            await one_round(bridge)
            bus.let_go.set()
            failed = await result(user, started)
            await one_round(bridge)

            assert failed["category"] == "user"
            assert bus.adapters == {}

    asyncio.run(asyncio.wait_for(told(), 60))


def test_operations_of_a_lost_run_fail_as_results_and_at_once(tmp_path: Path) -> None:
    async def story(_bridge: Bridge, bus: SlowBus, user: User) -> None:
        run = await user.run()
        bus.lost = True

        first = await user.work("/optim_step", model_id=run, seq_id=1)
        later = await user.work("/optim_step", model_id=run, seq_id=2)
        again = await user.work("/optim_step", model_id=run, seq_id=2)

        assert [each["category"] for each in (first, later, again)] == ["server"] * 3
        assert "create a training client from its newest checkpoint" in later["error"]
        await user.post("/optim_step", 410, model_id=run)

    play(tmp_path, story)


def test_saves_of_one_name_may_overtake_their_answers_where_they_overwrite(tmp_path: Path) -> None:
    async def story(_bridge: Bridge, bus: SlowBus, user: User) -> None:
        run = await user.run()
        saves = [
            await user.post("/save_weights", model_id=run, seq_id=seq, path="latest", overwrite=overwrite)
            for seq, overwrite in ((1, False), (2, True), (3, True), (4, False))
        ]
        await begun(bus, "save_checkpoint")
        bus.let_go.set()

        results = [await result(user, each) for each in saves]

        assert ["path" in each for each in results] == [True, True, True, False]
        assert "or overwrite it" in results[3]["error"]

    play(tmp_path, story, "save_checkpoint")
