"""Large answers: handed out as they are read, and no more of one tenant's than it reads."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from loractl.bus.ids import TenantId
from loractl.tinker_bridge.unread import Piecewise, Unread

ANN, BEN = TenantId("ann"), TenantId("ben")
KIB = 2**10


def app_that_tells(*parts: bytes) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    return app


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def told(app: Any, unread: Unread, send: Any) -> None:
    await Piecewise(app, unread=unread, tenant_of=lambda _: ANN)({"type": "http"}, None, send)


def test_an_answer_goes_out_in_pieces_that_are_the_whole() -> None:
    body, small = bytes(range(256)) * 3 * KIB, b"small"
    heard: list[Any] = []

    async def send(message: Any) -> None:
        heard.append(message)

    async def test() -> None:
        await told(app_that_tells(body, small), Unread(), send)
        bodies = heard[1:]
        assert b"".join(each["body"] for each in bodies) == body + small
        assert max(len(each["body"]) for each in bodies) == 256 * KIB
        assert [each["more_body"] for each in bodies] == [True, True, True, False]
        heard.clear()
        await told(app_that_tells(body), Unread(), send)
        assert [each["more_body"] for each in heard[1:]] == [True, True, False]

    run(test)


def test_a_tenants_next_answer_waits_until_it_has_read_the_others_and_nobody_elses_does() -> None:
    async def test() -> None:
        unread, reads = Unread(512 * KIB), asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await reads.wait()

        telling = asyncio.create_task(told(app_that_tells(bytes(600 * KIB)), unread, send))
        await asyncio.sleep(0)
        mine = asyncio.create_task(unread.room(ANN))
        await unread.room(BEN)
        await asyncio.sleep(0.05)
        assert not mine.done()
        reads.set()
        await telling
        await mine

    run(test)


def test_whoever_hangs_up_has_nothing_unread() -> None:
    async def test() -> None:
        unread = Unread(512 * KIB)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        telling = asyncio.create_task(told(app_that_tells(bytes(600 * KIB)), unread, send))
        await asyncio.sleep(0.01)
        telling.cancel()
        await asyncio.wait({telling})
        await unread.room(ANN)

    run(test)
