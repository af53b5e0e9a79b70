"""A body that the bridge dies of: tried alone by the next process, and not any more by the one after that."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from loractl.bus.messages import OptimStep, RefuseOperation
from loractl.tests.tinker_bridge.in_memory import User, bridge_on, client
from loractl.tests.tinker_bridge.test_run_again import DyingBus, left, result
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.future_rows import Tried
from loractl.tinker_bridge.future_table import FutureTable
from loractl.tinker_bridge.pace import Pace
from loractl.tinker_bridge.run_again import run_again

Ids = dict[str, str]


class Pausing(Pace):
    """What has to be started stays in hand."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def turn(self, size_bytes: int = 0) -> None:
        self.reached.set()
        await asyncio.Event().wait()


def next_life(
    state: Path,
    attempts: dict[str, int],
    after: Callable[[Bridge, DyingBus, User, Ids], Awaitable[None]],
    *,
    running: bool = True,
) -> None:
    """Two steps are under way when the bridge ends. attempts: what is found written of each then."""

    async def told() -> None:
        bus = DyingBus()
        async with bridge_on(state, bus) as bridge:
            user = User(bridge, "ann")
            model = await user.run()
            bus.dies_behind = (OptimStep,)
            ids = {
                name: await left(user, bus, "/optim_step", model_id=model, seq_id=seq)
                for name, seq in (("one", 1), ("two", 2))
            }
            file = bridge.layout.tinker_futures
        table = FutureTable(file)
        table.commit([Tried(ids=(ids[name],), attempts=each) for name, each in attempts.items()])
        table.close()
        bus.dies_behind, bus.asked, bus.outcomes = (), [], {}
        async with bridge_on(state, bus) as bridge:
            user.http = client(bridge, user.key)
            if running:
                await run_again(bridge)
            await after(bridge, bus, user, ids)

    asyncio.run(asyncio.wait_for(told(), 60))


def sent(bus: DyingBus) -> list[int]:
    return [body.seq for _, body in bus.asked if isinstance(body, OptimStep)]


def test_a_suspect_comes_behind_all_others_and_is_cleared_when_it_is_on_its_way(tmp_path: Path) -> None:
    async def after(bridge: Bridge, bus: DyingBus, user: User, ids: Ids) -> None:
        for each in ids.values():
            assert (await result(user, each))["metrics"]["applied"] == 1

        assert sent(bus) == [2, 1]
        await bridge.futures.tried([], 0)  # behind what was written before
        assert written(bridge) == {0}

    next_life(tmp_path, {"one": 1}, after)


def test_what_was_tried_alone_in_vain_is_failed_and_uses_its_number_up(tmp_path: Path) -> None:
    async def after(_: Bridge, bus: DyingBus, user: User, ids: Ids) -> None:
        failed = await result(user, ids["one"])

        assert "died twice" in failed["error"]
        (refusal,) = [body for _, body in bus.asked if isinstance(body, RefuseOperation)]
        assert (refusal.seq, refusal.code) == (1, "quarantined")
        assert (await result(user, ids["two"]))["metrics"]["applied"] == 1

    next_life(tmp_path, {"one": 2}, after)


def test_what_is_in_hand_is_written_down_first_and_an_end_in_order_clears_it(tmp_path: Path) -> None:
    async def after(bridge: Bridge, _: DyingBus, user: User, ids: Ids) -> None:
        pause = Pausing()
        object.__setattr__(bridge, "pace", pause)
        running = asyncio.create_task(run_again(bridge))
        await pause.reached.wait()
        assert written(bridge) == {1}

        running.cancel()
        await asyncio.wait([running])
        await bridge.futures.tried([], 0)
        assert written(bridge) == {0}

    next_life(tmp_path, {}, after, running=False)


def written(bridge: Bridge) -> set[int]:
    rows = bridge.journal.table._rows("SELECT DISTINCT attempts FROM futures WHERE ended IS NULL")
    return {attempts for (attempts,) in rows} or {0}
