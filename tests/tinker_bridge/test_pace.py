"""The loop's time is shared out: a bounded part of what came together is served in each round of the loop."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from loractl.tinker_bridge.pace import Pace, Paced

MIB = 2**20


class Clock(selectors.SelectSelector):
    """Time passes only where a loop waits, and where somebody says so."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


class Timeless(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


async def rounds_of(pace: Pace, sizes: list[int]) -> list[int]:
    """In which round of the loop each one had its turn, when all ask at once."""
    rounds = 0
    found: dict[int, int] = {}

    def count() -> None:
        nonlocal rounds
        rounds += 1
        asyncio.get_running_loop().call_soon(count)

    async def one(index: int, size_bytes: int) -> None:
        await pace.turn(size_bytes)
        found[index] = rounds

    count()
    await asyncio.gather(*(one(index, size_bytes) for index, size_bytes in enumerate(sizes)))
    return [found[index] for index in range(len(sizes))]


def test_steps_of_small_requests_share_a_round_of_the_loop_and_no_round_has_more_than_eight():
    rounds = asyncio.run(rounds_of(Pace(), [0] * 100))

    assert max(rounds.count(each) for each in rounds) == 8
    assert rounds == sorted(rounds)


def test_each_large_body_has_a_round_of_its_own():
    rounds = asyncio.run(rounds_of(Pace(), [3 * MIB] * 10))

    assert len(set(rounds)) == 10


@pytest.mark.parametrize(
    ("size_bytes", "takes_s", "begun"),
    [(3 * MIB, 0.02, [0.0, 0.04, 0.08]), (3 * MIB, 2.0, [0.0, 2.05, 4.1]), (0, 0.02, [0.0, 0.02, 0.04])],
    ids=["as long as that took", "for a moment at most", "not after small steps"],
)
def test_after_much_work_there_is_a_rest(size_bytes: int, takes_s: float, begun: Sequence[float]):
    loop = Timeless()
    found: list[float] = []

    async def one(pace: Pace) -> None:
        await pace.turn(size_bytes)
        found.append(loop.time())
        loop.clock.now_s += takes_s

    async def all_at_once() -> None:
        pace = Pace()
        await asyncio.gather(*(one(pace) for _ in begun))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(all_at_once())

    assert found == pytest.approx(begun)


def test_one_alone_does_not_wait():
    async def test() -> None:
        pace = Pace()
        for _ in range(3):
            turn = asyncio.ensure_future(pace.turn(8 * MIB))
            await asyncio.sleep(0)
            assert turn.done()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(test())


def test_whoever_gives_up_holds_nobody_up():
    async def test() -> None:
        pace = Pace()
        turns = [asyncio.ensure_future(pace.turn(MIB)) for _ in range(5)]
        await asyncio.sleep(0)
        for each in turns[1:4]:
            each.cancel()

        async with asyncio.timeout(5):
            await turns[4]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("path", "waits"), [("/api/v1/session_heartbeat", False), ("/api/v1/optim_step", True)]
)
def test_a_heartbeat_goes_ahead_of_all_that_wait(path: str, waits: bool):
    reached: list[str] = []

    async def app(scope: object, _receive: object, _send: object) -> None:
        reached.append("app")

    async def test() -> None:
        pace = Pace()
        crowd = [asyncio.ensure_future(pace.turn(MIB)) for _ in range(50)]
        await asyncio.sleep(0)
        asked: Callable[..., Awaitable[None]] = Paced(app, pace=pace)
        request = asyncio.ensure_future(asked({"type": "http", "path": path}, None, None))
        await asyncio.sleep(0)
        assert bool(reached) is not waits
        await asyncio.gather(request, *crowd)

    asyncio.run(test())
    assert reached == ["app"]
