"""Large results: handed out as they are read, and no more of one tenant's than it reads."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import Response
from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.results import Result
from loractl.tinker_bridge.unread import Unread

ANN, BEN = TenantId("ann"), TenantId("ben")
MIB = 2**20


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def unasked() -> Any:
    raise AssertionError("the request was read before")


def test_a_result_goes_out_in_pieces_that_are_the_whole() -> None:
    body = bytes(range(256)) * 5 * 2**10
    heard: list[Any] = []

    async def send(message: Any) -> None:
        heard.append(message)

    async def test() -> None:
        unread = Unread(2 * MIB)
        assert unread.enter(ANN, len(body))
        response = unread.told(Response(body, media_type="text/x"), ANN, len(body))
        await response({"type": "http"}, unasked, send)
        assert dict(heard[0]["headers"])[b"content-length"] == str(len(body)).encode()
        assert b"".join(each["body"] for each in heard[1:]) == body
        assert [each["more_body"] for each in heard[1:]] == [True] * 4 + [False]
        assert unread.enter(ANN, 2 * MIB)

    run(test)


def test_one_more_waits_for_its_own_tenants_others_alone_and_small_ones_never() -> None:
    async def test() -> None:
        unread = Unread(4 * MIB)
        assert unread.enter(ANN, 3 * MIB)
        assert not unread.enter(ANN, 2 * MIB)
        assert unread.enter(ANN, MIB)
        assert unread.enter(BEN, 9 * MIB)
        waiting = asyncio.create_task(unread.wait(20.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        unread.leave(ANN, 3 * MIB)
        await waiting
        assert unread.enter(ANN, 2 * MIB)

    run(test)


def test_a_result_that_is_never_sent_leaves_its_room() -> None:
    async def test() -> None:
        unread = Unread(2 * MIB)
        assert unread.enter(ANN, 2 * MIB)
        response = unread.told(Response(b"x"), ANN, 2 * MIB)
        assert not unread.enter(ANN, 2 * MIB)
        del response
        assert unread.enter(ANN, 2 * MIB)

    run(test)


def test_a_poll_whose_result_finds_no_room_is_told_so_in_time(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        ann = User(bridge, "ann")
        bridge.unread.enter(ANN, 256 * MIB)
        run_id = await ann.run()
        started = await ann.post("/save_weights", model_id=run_id, seq_id=1, path="a")
        future = bridge.futures.owned(ANN, started["request_id"])
        await future.done.wait()
        future.result = Result(b"x" * (2 * MIB))
        headers = {"x-stainless-read-timeout": "6"}

        told = await ann.http.post(
            "/api/v1/retrieve_future", json={"request_id": started["request_id"]}, headers=headers
        )
        bridge.unread.leave(ANN, 256 * MIB)
        read = await ann.http.post("/api/v1/retrieve_future", json={"request_id": started["request_id"]})

        assert told.json()["queue_state"] == "paused_rate_limit"
        assert len(read.content) == 2 * MIB

    with_bridge(tmp_path, test)
