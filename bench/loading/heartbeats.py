"""Heartbeats as the SDK sends them, from a process of their own, at fixed moments whatever is answered when.

Beside each goes one to a server that does nothing else: what the machine itself adds, for all these
processes share its cores.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import aiohttp

from .api import Api, connected

# As five hundred sessions beat: each does so every ten seconds.
EVERY_S = 0.02
_CALLED_OFF_S = 10.0  # as the SDK gives a heartbeat up
_ANSWER = b'{"type":"session_heartbeat"}'
_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n" + _ANSWER


@dataclass(frozen=True)
class Beat:
    """begun_s: by `time.monotonic`, the same for all processes. took_s: inf for one that failed."""

    begun_s: float
    took_s: float


@dataclass
class Beats:
    service: list[Beat] = field(default_factory=list)
    machine: list[Beat] = field(default_factory=list)


@dataclass(frozen=True)
class Quickness:
    """Of heartbeats, in ms. machine_p99: of those to a server that does nothing else."""

    count: int
    failed: int
    p50: float
    p95: float
    p99: float
    worst: float
    machine_p99: float


def quickness(beats: Beats, since_s: float = 0.0, until_s: float = float("inf")) -> Quickness:
    """Of those sent in a time."""
    took = sorted(1000 * beat.took_s for beat in beats.service if since_s <= beat.begun_s < until_s)
    idle = sorted(1000 * beat.took_s for beat in beats.machine if since_s <= beat.begun_s < until_s)
    failed = sum(each == float("inf") for each in took)
    p50, p95, p99 = (_cut(took, part) for part in (0.5, 0.95, 0.99))
    return Quickness(len(took), failed, p50, p95, p99, took[-1] if took else float("nan"), _cut(idle, 0.99))


def _cut(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


@contextmanager
def beating(url: str, key: str, session: str) -> Iterator[Beats]:
    """Heartbeats for as long as the block runs; they can be read once it has ended."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    nothing = processes.Process(target=_serve_nothing, args=(theirs,), daemon=True)
    nothing.start()
    theirs.close()
    idle_url = ours.recv()
    mine, others = processes.Pipe()
    process = processes.Process(target=_beat, args=(others, url, idle_url, key, session), daemon=True)
    process.start()
    others.close()  # so that its end is noticed
    mine.recv()  # the first one was answered
    found = Beats()
    try:
        yield found
    finally:
        mine.send("enough")
        found.service, found.machine = mine.recv()
        process.join()
        nothing.terminate()
        nothing.join()


def _beat(pipe: Connection, url: str, idle_url: str, key: str, session: str) -> None:
    asyncio.run(_beats(pipe, url, idle_url, key, session))


async def _beats(pipe: Connection, url: str, idle_url: str, key: str, session: str) -> None:
    found = Beats()
    async with connected(url, key) as http, connected(idle_url, key) as idle:
        await _one(http, session, [])
        pipe.send("ready")
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not pipe.poll():
            for client, kept in ((http, found.service), (idle, found.machine)):
                task = asyncio.create_task(_one(client, session, kept))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                due += EVERY_S / 2
                await asyncio.sleep(due - time.monotonic())
        await asyncio.gather(*under_way)
    pipe.send((found.service, found.machine))


async def _one(http: aiohttp.ClientSession, session: str, kept: list[Beat]) -> None:
    begun_s = time.monotonic()
    took_s = float("inf")
    try:
        async with asyncio.timeout(_CALLED_OFF_S):
            await Api(http).post("session_heartbeat", session_id=session)
        took_s = time.monotonic() - begun_s
    except (aiohttp.ClientError, TimeoutError):
        pass  # counted as failed
    kept.append(Beat(begun_s, took_s))


# --- the server that does nothing else -----------------------------------------------------------


class _Nothing(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"}"):  # the body's end
            self._transport.write(_RESPONSE)


def _serve_nothing(pipe: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Nothing, "127.0.0.1", 0)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await server.serve_forever()

    asyncio.run(serve())
