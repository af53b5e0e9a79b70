"""kill -9 of a running service's processes, and the way back."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ActorStatus, DaemonStatus, GetStatus
from loractl.daemon import launch
from loractl.tests.daemon.real_daemon import PATIENCE_S, until
from loractl.tests.tinker_bridge.served import START_S, Served


def actors(config: Config) -> list[ActorStatus]:
    with Client(config) as client:
        return actors_told(client)


def actors_told(client: Client) -> list[ActorStatus]:
    status = client.request(GetStatus(), timeout_s=PATIENCE_S)
    assert isinstance(status, DaemonStatus)
    return [*status.actors]


def pid_of(served: Served, role: str) -> int:
    return next(each.pid for each in actors(served.config) if each.role == role)


def replace(served: Served, role: str = "bridge") -> None:
    """Kill an actor, and wait until the service is whole again."""
    before = pid_of(served, role)
    assert before, "0 would be this process's own group"
    # One of each for all tries: to make them takes longer than to ask, and who starts needs the processor.
    with Client(served.config) as client, httpx.Client() as http:
        os.kill(before, signal.SIGKILL)

        def serves() -> bool:
            pid = next(each.pid for each in actors_told(client) if each.role == role)
            try:
                return pid not in (0, before) and http.get(f"{served.url}/healthz").is_success
            except httpx.TransportError:
                return False

        assert until(serves)


def kill_all(served: Served) -> None:
    """Broker, trainer, samplers and bridge, as a machine does that loses its power (but for its disk)."""
    pids = [each.pid for each in actors(served.config) if each.pid]
    daemon = int(StateLayout(Path(served.config.state_dir)).pid.read_text())
    for pid in (daemon, *pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start_again(served: Served) -> None:
    assert until(lambda: not launch.running(served.config))
    launch.start_detached(served.config, START_S)
