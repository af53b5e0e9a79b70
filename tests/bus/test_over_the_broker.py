"""Both clients and the actor's link through the real daemon: requests, resends, a kill in the middle."""

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from loractl.bus import sockets
from loractl.bus.async_client import AsyncClient
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.errors import ActorRestarting, DaemonGone, RequestConflict
from loractl.bus.ids import RequestId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import DaemonStatus, Echo, Echoed, GetStatus, GetVersions, Message, VersionTable

# Echoes; 'wait' is never answered, and 'die' ends the actor.
ACTOR = """
    import os, sys
    from loractl.bus.actor_link import ActorLink
    from loractl.bus.config import config_from_json
    from loractl.bus.messages import Drain, Echoed
    from pathlib import Path
    with ActorLink(config_from_json(Path(sys.argv[1]).read_text()), "trainer", "trainer") as link:
        link.ready("echo")
        while True:
            for envelope in link.receive(1.0):
                if isinstance(envelope.body, Drain):
                    sys.exit(0)
                text = envelope.body.payload.tobytes()
                if text == b"die":
                    os._exit(1)
                if text != b"wait":
                    link.reply(envelope, Echoed(payload=envelope.body.payload))
"""
DAEMON = """
    import sys
    from pathlib import Path
    from loractl.bus.config import config_from_json
    from loractl.bus.ids import ActorId
    from loractl.daemon.launch import run_foreground
    from loractl.daemon.supervisor import ActorCommand
    argv = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
    command = ActorCommand(actor=ActorId("trainer"), role="trainer", argv=argv)
    run_foreground(config_from_json(Path(sys.argv[1]).read_text()), commands=[command])
"""


@pytest.fixture
def process(config: Config, layout: StateLayout) -> Iterator[psutil.Process]:
    """A daemon with one actor, which may still be starting."""
    file = layout.root / "test.json"
    file.write_text(config.to_json())
    argv = [sys.executable, "-c", textwrap.dedent(DAEMON), str(file), textwrap.dedent(ACTOR)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if sockets.someone_listens(layout.client_socket):
            break
        threading.Event().wait(0.02)
    process = psutil.Process(daemon.pid)
    yield process
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = process.children(recursive=True)
    daemon.terminate()
    daemon.wait(60)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def echo(text: str) -> Echo:
    return Echo(payload=np.frombuffer(text.encode(), np.uint8))


def text(reply: Message) -> str:
    assert isinstance(reply, Echoed)
    return reply.payload.tobytes().decode()


def test_requests_reach_an_actor_and_their_answers_come_back(process: psutil.Process, config: Config) -> None:
    reasons: list[str] = []

    with Client(config, on_waiting=reasons.append) as client:
        early = client.submit(echo("before the actor is ready"))
        assert text(early.result(30)) == "before the actor is ready"
        many = [client.submit(echo(str(number))) for number in range(100)]
        answers = [text(pending.result(30)) for pending in many]
        status = client.request(GetStatus(), timeout_s=60)
        table = client.request(GetVersions(), timeout_s=60)

    assert answers == [str(number) for number in range(100)]
    assert isinstance(status, DaemonStatus)
    assert [(actor.actor, actor.phase) for actor in status.actors] == [("trainer", "ready")]
    assert table == VersionTable(last_event=0, records=())


def test_asyncio_clients_share_the_daemon(process: psutil.Process, config: Config) -> None:
    async def ask(name: str) -> list[str]:
        async with AsyncClient(config) as client:
            replies = [client.request(echo(f"{name}{number}"), timeout_s=60) for number in range(50)]
            return [text(reply) for reply in await asyncio.gather(*replies)]

    async def both() -> list[list[str]]:
        return await asyncio.gather(ask("a"), ask("b"))

    assert asyncio.run(both()) == [[f"{name}{number}" for number in range(50)] for name in "ab"]


def test_a_large_array_comes_back_whole(process: psutil.Process, config: Config) -> None:
    payload = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)

    with Client(config) as client:
        reply = client.request(Echo(payload=payload), timeout_s=60)

    assert isinstance(reply, Echoed)
    assert np.array_equal(reply.payload, payload)


def test_a_resend_reads_the_first_outcome_and_another_payload_is_refused(
    process: psutil.Process, config: Config
) -> None:
    mine = RequestId("mine")

    with Client(config) as first, Client(config) as second:
        once = first.request(echo("x"), request=mine, timeout_s=60)
        again = second.request(echo("x"), request=mine, timeout_s=60)
        with pytest.raises(RequestConflict):
            second.request(echo("y"), request=mine, timeout_s=60)

    assert (text(once), text(again)) == ("x", "x")


def test_an_actor_that_dies_ends_the_wait_and_serves_the_same_request_again(
    process: psutil.Process, config: Config
) -> None:
    with Client(config) as client:
        client.request(echo("ready"), timeout_s=60)
        waiting = client.submit(echo("wait"))
        with pytest.raises(ActorRestarting):
            client.request(echo("die"), timeout_s=60)
        with pytest.raises(ActorRestarting):
            waiting.result(30)

        assert text(client.request(echo("back"), timeout_s=60)) == "back"


@pytest.mark.parametrize("kind", ["plain", "asyncio"])
def test_a_killed_daemon_ends_the_wait_and_its_actor(
    process: psutil.Process, config: Config, kind: str
) -> None:
    actors: list[psutil.Process] = []

    def kill() -> None:
        actors.extend(process.children())
        process.kill()

    def plain() -> None:
        with Client(config) as client:
            client.request(echo("ready"), timeout_s=60)
            pending = client.submit(echo("wait"))
            kill()
            pending.result(30)

    async def awaiting() -> None:
        async with AsyncClient(config) as client:
            await client.request(echo("ready"), timeout_s=60)
            pending = client.submit(echo("wait"))
            kill()
            await pending.result(30)

    with pytest.raises(DaemonGone):
        plain() if kind == "plain" else asyncio.run(awaiting())

    assert len(actors) == 1
    assert psutil.wait_procs(actors, timeout=60)[1] == []
