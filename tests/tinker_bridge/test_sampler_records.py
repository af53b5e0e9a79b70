"""Sampling sessions under requests that come at the same time, and that come again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from loractl.bus.ids import TenantId
from loractl.bus.messages import DeleteVersion, LoadCheckpoint, Message
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, bridge_on
from loractl.tinker_bridge.bridge import Bridge


class JoiningBus(InMemoryBus):
    """meanwhile: done while a checkpoint is being loaded."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def request(self, body: Message, **more: object) -> Message:
        if isinstance(body, LoadCheckpoint) and self.meanwhile is not None:
            await self.meanwhile()
        return await super().request(body, **more)  # type: ignore[arg-type]


def play(tmp_path: Path, story: Callable[[Bridge, JoiningBus, User], Awaitable[None]]) -> None:
    async def told() -> None:
        bus = JoiningBus()
        async with bridge_on(tmp_path, bus) as bridge:
            await story(bridge, bus, User(bridge, "ann"))

    asyncio.run(asyncio.wait_for(told(), 60))


def test_whoever_joins_while_a_checkpoint_is_published_keeps_a_number_of_its_own(tmp_path: Path) -> None:
    async def story(bridge: Bridge, bus: JoiningBus, user: User) -> None:
        session = await user.session()
        path = await user.save(await user.run(session), 1, "kept")
        opened = await user.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=path
        )
        sampler = opened["sampling_session_id"]
        numbers = []

        async def join() -> None:
            joined = await user.post("/join_sampling_session", sampling_session_id=sampler)
            numbers.append(joined["client_counter"])

        bus.meanwhile = join
        await bridge.samplers.source(TenantId(user.name), sampler)
        await join()

        assert numbers == [1, 2]

    play(tmp_path, story)


def test_a_number_that_was_used_names_no_other_sampler_and_leaves_no_version(tmp_path: Path) -> None:
    async def story(_bridge: Bridge, bus: JoiningBus, user: User) -> None:
        session = await user.session()
        run = await user.run(session)
        await user.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
        )

        failed = await user.work(
            "/save_weights_for_sampler", model_id=run, seq_id=1, sampling_session_seq_id=0
        )

        assert "another sampling session already" in failed["error"]
        assert [body.version for _, body in bus.asked if isinstance(body, DeleteVersion)] == [1]
        shown = await user.get(f"/samplers/{session}:sample:0")
        assert shown["base_model"] == "tiny"

    play(tmp_path, story)
