"""Adapters of no session: published on demand, never expired, and on a new lane after a restart."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from loractl.bus.config import load_config
from loractl.bus.errors import (
    Aborted,
    ActorRestarting,
    ActorUnavailable,
    AdapterNotFound,
    LaneLost,
    PublishFailed,
)
from loractl.bus.ids import LaneId, TenantId
from loractl.bus.messages import LoraSpec, Message, OptimStep, PublishAdapter, StepResult
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, client
from loractl.tinker_bridge.bodies import OptimStepBody
from loractl.tinker_bridge.bridge import Bridge, open_bridge
from loractl.tinker_bridge.founding.serving import Serving
from loractl.tinker_bridge.future_rows import Asked
from loractl.tinker_bridge.housekeeping import one_round
from loractl.tinker_bridge.operations import Step
from loractl.tinker_bridge.progress import Progress
from loractl.tinker_bridge.records import RunRecord
from loractl.tinker_bridge.results import Result
from loractl.tinker_bridge.routes.founding import unless_gone
from loractl.tinker_bridge.training import digest_of
from starlette.requests import Request

ANN = TenantId("ann")


class TrainingBus(InMemoryBus):
    """Takes optimizer steps, too. fail_next: raised by the next operation instead of its answer."""

    fail_next: Exception | None = None
    applied = True

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        if isinstance(body, OptimStep | PublishAdapter) and self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if isinstance(body, OptimStep):
            return StepResult(applied=self.applied, step=1, grad_norm=1.0, learning_rate=1.0, tokens=1)
        return super()._answer(body, tenant)

    def published(self) -> int:
        return self.kinds().count("publish_adapter")

    def lanes(self) -> list[tuple[LaneId, int]]:
        return [(body.lane, body.seq) for _, body in self.asked if isinstance(body, OptimStep)]


def play(tmp_path: Path, story: Callable[[Bridge, TrainingBus, RunRecord], Awaitable[None]]) -> None:
    async def told() -> None:
        bus = TrainingBus()
        bridge = open_bridge(
            load_config(state_dir=str(tmp_path), overrides=["model.name=tiny"], environ={}), bus
        )
        lora = LoraSpec(rank=4, alpha=8.0, seed=1)
        run = await bridge.runs.create(ANN, "", "lora-1", "tiny", lora, {}, Progress())
        try:
            await story(bridge, bus, run)
        finally:
            bridge.close()

    asyncio.run(told())


async def step(bridge: Bridge, run: RunRecord) -> Result:
    call = Step(OptimStepBody(model_id=run.id))
    future = bridge.training.submit(Asked(ANN, "/optim_step", b""), run.id, None, call, digest_of(b""))
    result = await bridge.futures.wait(ANN, future.id, 30)
    assert isinstance(result, Result)
    return result


def test_samples_share_one_publication_until_the_adapter_changes(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await asyncio.gather(*(bridge.serving.up_to_date(run) for _ in range(5)))
        assert bus.published() == 1

        await step(bridge, run)
        await asyncio.gather(*(bridge.serving.up_to_date(run) for _ in range(5)))
        await bridge.serving.up_to_date(run)

        assert bus.published() == 2

    play(tmp_path, story)


def test_a_step_that_changed_nothing_needs_no_publication(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await bridge.serving.up_to_date(run)
        bus.applied = False

        await step(bridge, run)
        await bridge.serving.up_to_date(run)

        assert bus.published() == 1

    play(tmp_path, story)


def test_a_publication_that_failed_is_tried_again(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        bus.fail_next = PublishFailed("no sampler")

        with pytest.raises(PublishFailed):
            await bridge.serving.up_to_date(run)
        await bridge.serving.up_to_date(run)

        assert bus.published() == 2

    play(tmp_path, story)


def test_publications_are_in_order_with_the_steps(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await step(bridge, run)
        await bridge.serving.up_to_date(run)
        await step(bridge, run)

        places = [
            (body.lane, body.seq) for _, body in bus.asked if isinstance(body, OptimStep | PublishAdapter)
        ]
        assert len({lane for lane, _ in places}) == 1
        assert [seq for _, seq in places] == [1, 2, 3]

    play(tmp_path, story)


def test_a_run_that_is_lost_says_so_and_goes_on_with_another_lane(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await step(bridge, run)
        bus.fail_next = LaneLost("restarted")

        lost = await step(bridge, run)
        again = await step(bridge, run)

        assert lost.failed
        assert b"restarted" in lost.body
        assert not again.failed
        (first, one), (second, two), (third, three) = bus.lanes()
        assert first == second != third
        assert (one, two, three) == (1, 2, 1)

    play(tmp_path, story)


def test_a_restart_of_the_trainer_is_waited_for(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        bus.fail_next = ActorRestarting("restarting")

        assert not (await step(bridge, run)).failed

        assert len({*bus.lanes()}) == 1

    play(tmp_path, story)


def test_samples_do_not_wait_for_a_trainer_that_was_given_up(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        serving = Serving(bridge.training, bridge.health, look_s=0.0)
        await serving.up_to_date(run)
        await step(bridge, run)
        bus.given_up = True

        for _ in range(3):
            with pytest.raises(ActorUnavailable, match="daemon restart"):
                await serving.up_to_date(run)

        assert len(bridge.futures) == 1  # and not one for each who asked
        assert bus.published() == 2

    play(tmp_path, story)


def test_what_was_published_is_sampled_from_without_a_trainer(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await bridge.serving.up_to_date(run)
        bus.given_up = True

        await bridge.serving.up_to_date(run)

        assert bus.published() == 1

    play(tmp_path, story)


def test_who_asks_for_an_adapter_is_told_at_once_that_the_trainer_was_given_up(tmp_path):
    async def told() -> None:
        bus = TrainingBus()
        async with bridge_on(tmp_path, bus) as bridge:
            bus.given_up = True
            refused = await User(bridge, ANN).http.post("/add_lora", json={"name": "poet", "rank": 4})

        assert (refused.status_code, refused.json()["code"]) == (503, "actor_unavailable")
        assert bus.adapters == {}

    asyncio.run(asyncio.wait_for(told(), 60))


def test_what_the_trainer_lost_is_published_anew(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await step(bridge, run)
        await bridge.serving.up_to_date(run)
        bus.fail_next = LaneLost("restarted")
        await step(bridge, run)

        await bridge.serving.up_to_date(run)

        assert bus.published() == 2

    play(tmp_path, story)


def test_an_adapter_that_was_answered_is_there_for_a_bridge_that_follows_a_killed_one(tmp_path):
    async def told() -> None:
        bus = TrainingBus()
        async with bridge_on(tmp_path, bus) as killed:
            user = User(killed, ANN)
            made = (await user.http.post("/add_lora", json={"name": "poet", "rank": 4})).json()
            # While the first is still open: nothing that closing it would write is there.
            async with bridge_on(tmp_path, bus) as bridge:
                again = client(bridge, user.key)
                (listed,) = (await again.get("/adapters")).json()["adapters"]
                run = bridge.runs.live(ANN, made["model_id"])
                stepped = await step(bridge, run)
                removed = (await again.post("/remove_lora", json={"model_id": run.id})).json()

        assert {name: listed[name] for name in made} == made
        assert not stepped.failed
        assert removed == {"model_id": run.id, "status": "removed"}
        assert bus.adapters == {}

    asyncio.run(asyncio.wait_for(told(), 60))


def test_it_outlives_every_round_of_housekeeping_until_it_is_removed(tmp_path):
    async def story(bridge: Bridge, bus: TrainingBus, run: RunRecord) -> None:
        await one_round(bridge)
        assert not (await step(bridge, run)).failed

        await bridge.runs.let_go(run)

        assert "delete_adapter" in bus.kinds()
        with pytest.raises(AdapterNotFound, match="was removed"):
            bridge.runs.live(ANN, run.id)

    play(tmp_path, story)


def test_a_client_that_hangs_up_ends_its_samples():
    ended = []

    async def sampling() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def hang_up() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    with pytest.raises(Aborted):
        asyncio.run(unless_gone(Request({"type": "http"}, hang_up), sampling()))

    assert ended == [True]
