"""What the bridge does beside its loop gives way to the loop."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest
from loractl.tinker_bridge.future_journal import FutureJournal
from loractl.tinker_bridge.future_rows import Tried
from loractl.tinker_bridge.giving_way import NICENESS, pool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have a niceness of their own on Linux"
)


def niceness_of(thread: threading.Thread) -> int:
    assert thread.native_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def lower_than(niceness: int) -> int:
    return min(niceness + NICENESS, 19)


def test_the_thread_that_writes_futures_gives_way_to_the_loop(tmp_path: Path) -> None:
    async def test() -> None:
        journal = FutureJournal(tmp_path / "futures.sqlite")
        await journal.write(Tried(ids=(), attempts=0))
        (writing,) = (each for each in threading.enumerate() if each.name == "futures")

        assert niceness_of(writing) == lower_than(niceness_of(threading.current_thread()))
        journal.close()

    asyncio.run(test())


def test_threads_for_what_takes_long_give_way_and_the_loop_does_not() -> None:
    async def test() -> None:
        before = niceness_of(threading.current_thread())
        asyncio.get_running_loop().set_default_executor(pool())
        working = await asyncio.to_thread(threading.current_thread)

        assert niceness_of(working) == lower_than(before)
        assert niceness_of(threading.current_thread()) == before

    asyncio.run(test())
