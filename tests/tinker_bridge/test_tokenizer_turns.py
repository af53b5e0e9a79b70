"""The one thread for text: tenants take turns in it, however much one of them sends."""

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loractl.bus.errors import InvalidData
from loractl.bus.ids import TenantId
from loractl.client.tiny_model import make_tiny_model
from loractl.tinker_bridge.founding import passes
from loractl.tinker_bridge.founding.bodies import RowsBody
from loractl.tinker_bridge.founding.datums import inputs_of
from loractl.tinker_bridge.founding.tokenizer import TokenizerThread

ANN, BEN = TenantId("ann"), TenantId("ben")


def with_thread(directory: Path, test: Callable[[TokenizerThread], Any]) -> None:
    make_tiny_model(directory)

    async def path() -> str:
        return str(directory)

    base: Any = SimpleNamespace(path=path)
    thread = TokenizerThread(base)
    try:
        asyncio.run(asyncio.wait_for(test(thread), 60))
    finally:
        thread.close()


def slow(_tokenizer: object, *, said: list[str], word: str) -> str:
    time.sleep(0.05)
    said.append(word)
    return word


def test_whoever_sends_little_comes_between_the_pieces_of_whoever_sends_much(tmp_path: Path) -> None:
    said: list[str] = []

    async def test(thread: TokenizerThread) -> None:
        many = asyncio.create_task(thread.each(ANN, [partial(slow, said=said, word="ann")] * 10))
        more = asyncio.create_task(thread.each(ANN, [partial(slow, said=said, word="ann")] * 10))
        await asyncio.sleep(0.08)  # one has begun
        assert await thread.each(BEN, [partial(slow, said=said, word="ben")]) == ["ben"]
        assert said.index("ben") <= 4
        assert [len(each) for each in await asyncio.gather(many, more)] == [10, 10]

    with_thread(tmp_path, test)


def test_small_pieces_share_a_turn_and_keep_their_order(tmp_path: Path) -> None:
    async def test(thread: TokenizerThread) -> None:
        works = [
            partial(lambda tokenizer, word: tokenizer.encode(word), word=str(each)) for each in range(50)
        ]

        found = await thread.each(ANN, works)

        assert found == [thread._loaded("").encode(str(each)) for each in range(50)]

    with_thread(tmp_path, test)


def test_what_a_piece_raises_is_raised_and_the_next_has_its_turn(tmp_path: Path) -> None:
    def refuse(_tokenizer: object) -> str:
        raise InvalidData("no")

    async def test(thread: TokenizerThread) -> None:
        with pytest.raises(InvalidData):
            await thread.each(ANN, [refuse])
        assert await thread.each(ANN, [lambda _: "yes"]) == ["yes"]

    with_thread(tmp_path, test)


def test_the_rows_of_a_pass_are_packed_in_that_thread_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_in: list[str] = []

    def packed(datums: Any, loss: Any) -> Any:
        packed_in.append(threading.current_thread().name)
        return inputs_of(datums, loss)

    monkeypatch.setattr(passes, "inputs_of", packed)
    row = {"tokens": [1, 5], "target_tokens": [5, 6]}

    async def test(thread: TokenizerThread) -> None:
        call = await passes.rows_call(thread, ANN, RowsBody(model_id="m", data=[row, row]))
        assert call.size_bytes > 0

    with_thread(tmp_path, test)
    assert [name.rpartition("_")[0] for name in packed_in] == ["tokenizer"]
