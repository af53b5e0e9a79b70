"""What only cycles keep alive is looked for when there is much of it, or little else to do."""

import asyncio
import gc
import weakref

import pytest
from loractl.tinker_bridge import collecting
from loractl.tinker_bridge.collecting import is_due, keep_collecting


@pytest.mark.parametrize(
    ("stayed", "under_way", "since_s", "grown_bytes", "due"),
    [
        (100_001, 0, 0.0, 0, True),
        (100_000, 0, 29.0, 0, False),
        (2_000_000, 8192, 60.0, 2**28, False),
        (2_000_000, 8192, 900.0, 0, True),
        (2_000_000, 8192, 60.0, 2**30, True),
        (5_000_000, 8192, 0.0, 0, True),
        (10, 0, 30.0, 0, True),
        (10, 64, 60.0, 0, False),
        (0, 0, 3600.0, 0, False),
    ],
)
def test_it_is_time_when_more_stayed_than_futures_explain_or_there_is_little_to_do(
    stayed: int, under_way: int, since_s: float, grown_bytes: int, due: bool
) -> None:
    assert is_due(stayed, under_way, since_s, grown_bytes) == due


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_stays_in_cycles_goes_though_python_does_not_look_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collecting, "_LOOK_S", 0.001)
    monkeypatch.setattr(collecting, "_OTHERS", 1000)
    gone: list[bool] = []

    async def until_one_went() -> None:
        keeping = asyncio.create_task(keep_collecting(lambda: 0))
        while not gone:
            weakref.finalize(Cycle(), gone.append, True)
            await asyncio.sleep(0)
        keeping.cancel()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(asyncio.wait_for(until_one_went(), 60))
    finally:
        gc.enable()
