"""Connections whose request never begins, or never ends beginning."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from loractl.tinker_bridge import connections
from loractl.tinker_bridge.connections import Connection
from loractl.tinker_bridge.two_lines import TwoLines

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"


async def refusing(_scope: Any, _receive: Any, send: Any) -> None:
    """Answers before it reads."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


@asynccontextmanager
async def serving(
    lines: TwoLines, app: Any = refusing
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listening = socket.create_server(("127.0.0.1", 0))
    connection: Any = partial(Connection, lines=lines)
    settings = uvicorn.Config(app, http=connection, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(settings)
    task = asyncio.create_task(server._serve([listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


def run(test: Callable[[TwoLines], Awaitable[None]], lines: TwoLines | None = None) -> None:
    lines = lines or TwoLines()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lines)) as runner:
        runner.run(asyncio.wait_for(test(lines), 60))


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("begun", [b"", b"GET / HT", REQUEST % 5 + b"x-more: "])
def test_a_request_that_does_not_get_past_its_headers_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "_WITHIN_S", 0.1)

    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            writer.write(begun)

            assert await ended(reader)

    run(test)


def test_headers_without_an_end_are_hung_up_on() -> None:
    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            writer.write(REQUEST % 5 + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(200)))

            assert await ended(reader)

    run(test)


def test_a_large_body_that_is_refused_early_is_taken_to_its_end_and_the_next_request_too() -> None:
    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            for _ in range(2):
                writer.write(REQUEST % 300_000 + b"\r\n" + bytes(300_000))
                answer = await reader.readuntil(b"\r\n\r\nno")

                assert answer.startswith(b"HTTP/1.1 401")

    run(test)


def test_the_rest_of_a_refused_body_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_WITHIN_S", 0.1)

    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            writer.write(REQUEST % 300_000 + b"\r\n")
            await reader.readuntil(b"\r\n\r\nno")
            writer.write(b"drip")

            assert await ended(reader)

    run(test)


@pytest.mark.parametrize(
    ("paths", "passes"),
    [
        (["/api/v1/session_heartbeat"], True),
        (["/healthz", "/api/v1/healthz"], True),
        (["/api/v1/retrieve_future"], False),
        (["/api/v1/session_heartbeat", "/api/v1/retrieve_future"], False),
        (["/api/v1/retrieve_future", "/api/v1/session_heartbeat"], True),
    ],
)
def test_whoever_sent_a_heartbeat_last_passes_the_others(paths: list[str], passes: bool) -> None:
    watched = Watched()

    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            for path in paths:
                writer.write(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" % path.encode())
                await reader.readuntil(b"\r\n\r\nno")
            assert bool(watched.behind) is not passes

        assert not watched.behind  # its number may be anybody's next

    run(test, watched)


def test_who_asks_for_another_protocol_is_answered_in_this_one() -> None:
    async def test(lines: TwoLines) -> None:
        async with serving(lines) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")

            assert (await reader.readuntil(b"\r\n\r\nno")).startswith(b"HTTP/1.1 401")

    run(test)


class Watched(TwoLines):
    """Knows who stands behind."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: set[int] = set()

    def put_off(self, descriptor: int) -> None:
        super().put_off(descriptor)
        self.behind.add(descriptor)

    def let_pass(self, descriptor: int) -> None:
        super().let_pass(descriptor)
        self.behind.discard(descriptor)


async def telling_much(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(32 * 2**20)})


@pytest.mark.parametrize("reads", [False, True])
def test_who_leaves_an_answer_unread_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    monkeypatch.setattr(connections, "_READ_WITHIN_S", 0.2)
    hung_up = asyncio.Event()
    hang_up = Connection._hang_up

    def seen(connection: Connection) -> None:
        hang_up(connection)
        hung_up.set()

    monkeypatch.setattr(Connection, "_hang_up", seen)

    async def test(lines: TwoLines) -> None:
        async with serving(lines, telling_much) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            if not reads:
                await hung_up.wait()
                return
            left = 32 * 2**20
            while left > 0:  # slowly, for longer than somebody may read nothing
                left -= len(await reader.read(2**20))
                await asyncio.sleep(0.02)
            assert not hung_up.is_set()

    run(test)
