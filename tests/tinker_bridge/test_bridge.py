"""The bridge: what it says about the service, and how its process starts, serves and ends."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import psutil
import pytest
import zstandard
from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, LimitsConfig, load_config
from loractl.bus.errors import DaemonGone, InvalidConfig, LoractlError, StartFailed
from loractl.bus.identities import unsolicited
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorPhase,
    ActorReady,
    ActorRole,
    ActorStatus,
    CreateAdapter,
    DaemonStatus,
    Drain,
    Envelope,
    GetStatus,
    Message,
)
from loractl.tinker_bridge.app import create_app
from loractl.tinker_bridge.base import Pending
from loractl.tinker_bridge.bridge import open_bridge
from loractl.tinker_bridge.health import health_of
from loractl.tinker_bridge.health_check import HealthCheck
from loractl.tinker_bridge.server import listen, url_of

MIB = 2**20
PATHS = ["/healthz", "/api/v1/healthz"]


def actor(name: str, role: ActorRole, phase: ActorPhase, details: str = "") -> ActorStatus:
    return ActorStatus(
        actor=name, role=role, phase=phase, pid=1, restarts=0, rss_bytes=0, waiting=0, details=details
    )


def status(*actors: ActorStatus) -> DaemonStatus:
    return DaemonStatus(
        daemon_version="1",
        pid=1,
        uptime_s=1.0,
        state_dir="/state",
        base_model="tiny",
        http="",
        actors=actors,
        adapters=0,
        versions=0,
        last_event=0,
    )


READY = status(actor("trainer", "trainer", "ready"), actor("sampler-0", "sampler", "restarting"))
STARTING = status(actor("trainer", "trainer", "starting"))


@pytest.mark.parametrize(
    ("reported", "missing"),
    [
        (READY, ()),
        (STARTING, ("trainer is starting",)),
        (status(actor("trainer", "trainer", "failed", "no model")), ("trainer is failed",)),
        (status(), ("the daemon has no trainer",)),
        (
            status(replace(actor("trainer", "trainer", "ready"), silent_s=12.3)),
            ("trainer is silent for 12 s",),
        ),
        (replace(READY, disk_free_bytes=63, disk_kept_bytes=64), ("the disk is full",)),
    ],
)
def test_the_service_is_up_when_the_trainer_is_ready_and_has_room(
    reported: DaemonStatus, missing: tuple[str, ...]
) -> None:
    assert health_of(reported).missing == missing


class StatusBus:
    """Answers GetStatus with what it was given; an error is raised, None never comes."""

    def __init__(self, outcome: DaemonStatus | LoractlError | None) -> None:
        self.outcome = outcome

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Pending:
        raise AssertionError("health asks one question")

    async def request(
        self, body: Message, *, timeout_s: float | None = None, tenant: TenantId | None = None
    ) -> Message:
        assert isinstance(body, GetStatus)
        assert timeout_s is not None
        if self.outcome is None:
            raise TimeoutError
        if isinstance(self.outcome, LoractlError):
            raise self.outcome
        return self.outcome


def get(bus: StatusBus, path: str, state_dir: Path) -> httpx.Response:
    async def call() -> httpx.Response:
        config = load_config(state_dir=str(state_dir), environ={})
        transport = httpx.ASGITransport(app=create_app(open_bridge(config, bus)))
        async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
            return await client.get(path)

    return asyncio.run(call())


@pytest.mark.parametrize("path", PATHS)
def test_health_is_ok_when_all_is_well(path: str, state_dir: Path) -> None:
    response = get(StatusBus(READY), path, state_dir)

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("outcome", "missing"),
    [
        (STARTING, "trainer is starting"),
        (None, "the daemon did not answer within 2 s"),
        (DaemonGone("the daemon of /home/ann/state stopped"), "the daemon does not answer"),
    ],
)
def test_health_names_what_is_missing(
    outcome: DaemonStatus | LoractlError | None, missing: str, state_dir: Path
) -> None:
    response = get(StatusBus(outcome), PATHS[0], state_dir)

    assert (response.status_code, response.json()) == (503, {"status": "unavailable", "missing": [missing]})


def test_the_broker_is_asked_once_for_many_who_ask_together_or_soon() -> None:
    async def test() -> None:
        asked, now = [], 0.0

        class Counting(StatusBus):
            async def request(self, body: Message, **more: Any) -> Message:
                asked.append(body)
                return await super().request(body, **more)

        check = HealthCheck(Counting(READY), clock=lambda: now)
        await asyncio.gather(*(check.found() for _ in range(50)))
        now = 0.4
        await check.found()
        assert len(asked) == 1
        now = 0.6
        await check.found()
        assert len(asked) == 2

    asyncio.run(test())


def test_port_0_takes_a_free_port() -> None:
    with listen("127.0.0.1:0") as listening:
        assert url_of(listening).startswith("http://127.0.0.1:")
        assert not url_of(listening).endswith(":0")


@pytest.mark.parametrize("http", ["", "8000", ":8000", "localhost:", "localhost:http", "localhost:70000"])
def test_an_address_of_another_form_is_refused(http: str) -> None:
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        listen(http)


def test_a_port_in_use_says_what_to_do() -> None:
    with (
        listen("127.0.0.1:0") as taken,
        pytest.raises(StartFailed, match=r"already in use; choose another --http"),
    ):
        listen(url_of(taken).removeprefix("http://"))


# --- the process ---------------------------------------------------------------------------------


class Broker:
    """As much of a broker as a bridge needs: it reports `status`, and hears what the bridge says."""

    def __init__(self, layout: StateLayout) -> None:
        self.status = READY
        self.heard: Queue[Message] = Queue()
        self.unanswered: Queue[Message] = Queue()
        self._limits = LimitsConfig()
        self._orders: Queue[Callable[[], None]] = Queue()
        self._context = sockets.new_context()
        layout.run.mkdir(parents=True)
        self._clients = sockets.bind_router(self._context, layout.client_socket, self._limits)
        self._actors = sockets.bind_router(self._context, layout.actor_socket, self._limits, handover=True)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def drain(self) -> None:
        self._orders.put(lambda: self._actors.send_multipart([b"bridge", *encode(unsolicited(Drain()))]))

    def wait_until_ready(self) -> ActorReady:
        while not isinstance(heard := self.heard.get(timeout=120), ActorReady):
            pass
        return heard

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        sockets.close(self._context, self._clients, self._actors)

    def _run(self) -> None:
        while not self._stopping.is_set():
            while not self._orders.empty():
                self._orders.get()()
            for _, *frames in sockets.receive_waiting(self._actors):
                self.heard.put(decode(frames, self._limits).body)
            self._clients.poll(5)
            for client, *frames in sockets.receive_waiting(self._clients):
                asked = decode(frames, self._limits)
                if not isinstance(asked.body, GetStatus):
                    self.unanswered.put(asked.body)
                    continue  # what the trainer would answer, once it is ready
                answer = Envelope(request=asked.request, tenant=asked.tenant, body=self.status)
                self._clients.send_multipart([client, *encode(answer)])


@pytest.fixture
def state_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lo"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def broker(state_dir: Path) -> Iterator[Broker]:
    broker = Broker(StateLayout(state_dir))
    yield broker
    broker.stop()


@contextlib.contextmanager
def bridge(state_dir: Path, http: str = "127.0.0.1:0") -> Iterator[subprocess.Popen[str]]:
    config: Config = load_config(state_dir=str(state_dir), environ={}, overrides=[f"daemon.http={http}"])
    file = state_dir / "config.json"
    file.write_text(config.to_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "loractl.tinker_bridge", "--config", str(file), "--actor", "bridge"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_bridge_serves_where_it_says_until_it_is_drained(broker: Broker, state_dir: Path) -> None:
    with bridge(state_dir) as process:
        ready = broker.wait_until_ready()

        up = httpx.get(f"{ready.details}/healthz")
        broker.status = STARTING
        while (down := httpx.get(f"{ready.details}/api/v1/healthz")).is_success:
            pass  # what was found out a moment ago is said again
        broker.drain()

        assert (ready.actor, ready.role, ready.pid) == ("bridge", "bridge", process.pid)
        assert (up.status_code, up.json()) == (200, {"status": "ok"})
        assert (down.status_code, down.json()["missing"]) == (503, ["trainer is starting"])
        assert process.wait(60) == 0


def test_a_signal_ends_the_bridge_cleanly_and_who_still_waits_is_told(
    broker: Broker, state_dir: Path
) -> None:
    headers = {"X-API-Key": Keys(StateLayout(state_dir)).create("ann")}
    with bridge(state_dir) as process, ThreadPoolExecutor() as senders:
        url = broker.wait_until_ready().details
        asking = senders.submit(httpx.post, f"{url}/add_lora", json={"rank": 4}, headers=headers, timeout=60)
        while not isinstance(broker.unanswered.get(timeout=20), CreateAdapter):
            pass

        process.send_signal(signal.SIGTERM)
        answer = asking.result()
        _, talk = process.communicate(timeout=60)

        assert process.returncode == 0
        assert (answer.status_code, answer.json()["code"]) == (503, "actor_stopping")
        assert "Traceback" not in talk


def test_bodies_that_grew_leave_no_memory_behind(broker: Broker, state_dir: Path) -> None:
    keys = [Keys(StateLayout(state_dir)).create(name) for name in ("ann", "ben")]
    bomb = zstandard.compress(bytes(200 * MIB))

    with bridge(state_dir) as process, ThreadPoolExecutor() as senders:
        url = broker.wait_until_ready().details

        def refused(number: int) -> str:
            headers = {"X-API-Key": keys[number % 2], "Content-Encoding": "zstd"}
            answer = httpx.post(f"{url}/api/v1/forward_backward", content=bomb, headers=headers, timeout=60)
            return str(answer.json()["detail"])

        def held_bytes() -> int:
            return int(psutil.Process(process.pid).memory_info().rss)

        at_first_bytes = held_bytes()
        assert all("larger than" in each for each in senders.map(refused, range(8)))

        patience = time.monotonic() + 30
        while held_bytes() > at_first_bytes + 32 * MIB and time.monotonic() < patience:
            httpx.get(f"{url}/healthz")  # what was in use a moment ago is let go of
        assert held_bytes() <= at_first_bytes + 32 * MIB


def test_a_port_in_use_is_one_line_and_exit_code_3(broker: Broker, state_dir: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        bridge(state_dir, f"127.0.0.1:{taken.getsockname()[1]}") as process,
    ):
        _, talk = process.communicate(timeout=120)

        assert process.returncode == 3
        assert talk.count("\n") == 1
        assert "address already in use" in talk


def test_without_a_daemon_the_bridge_does_not_start(state_dir: Path) -> None:
    with bridge(state_dir) as process:
        _, talk = process.communicate(timeout=120)

        assert process.returncode == 3
        assert "no daemon runs" in talk
