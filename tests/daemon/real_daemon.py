"""A real daemon in a process of its own, with the actors a test hands in; says every change of a phase."""

import contextlib
import json
import os
import queue
import random
import signal
import socket as posix
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from loractl.bus.client import Client
from loractl.bus.config import Config, config_from_json, subprocess_environment
from loractl.bus.errors import LoractlError
from loractl.bus.ids import ActorId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ActorRole, DaemonStatus, Echo, Echoed
from loractl.daemon.launch import run_foreground
from loractl.daemon.supervisor import ActorCommand

# Waiting ends when what is waited for happens: this costs only those who fail, and saves slow machines.
PATIENCE_S = 120.0
HERE = Path(__file__).parent


def main() -> int:
    config = config_from_json(Path(sys.argv[1]).read_text())
    commands = [
        ActorCommand(actor=ActorId(actor), role=role, argv=argv)
        for actor, role, argv in json.loads(sys.argv[2])
    ]

    def progressed(status: DaemonStatus) -> None:
        phases = {actor.actor: [actor.phase, actor.restarts, actor.details] for actor in status.actors}
        print(json.dumps(phases), flush=True)

    try:
        return run_foreground(config, progressed, commands)
    except LoractlError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 2 if error.fault == "user" else 3


def actor_argv(config: Config, script: str, actor: str, *options: str) -> list[str]:
    run_config = str(StateLayout(Path(config.state_dir)).config)
    return [sys.executable, str(HERE / script), "--config", run_config, "--actor", actor, *options]


@dataclass
class RealDaemon:
    """actors: name to (role, argv). environment: on top of ours. Phases arrive on `_said` as the daemon prints
    them."""

    config: Config
    actors: Mapping[str, tuple[ActorRole, list[str]]]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[str]" = field(init=False)
    phases: dict[str, list[object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = Path(self.config.state_dir)
        root.mkdir(parents=True, exist_ok=True)
        file = root / "test-config.json"
        file.write_text(self.config.to_json())
        commands = json.dumps([[name, role, argv] for name, (role, argv) in self.actors.items()])
        self._said: queue.Queue[dict[str, list[object]] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "real_daemon.py"), str(file), commands],
            stdout=subprocess.PIPE,
            stderr=(root / "stderr").open("w"),
            env=subprocess_environment(self.environment),
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def until(self, **phases: str) -> "RealDaemon":
        """Wait until each of these actors is, or was since the last call, in its phase."""
        missing = {name.replace("_", "-"): phase for name, phase in phases.items()}
        deadline = time.monotonic() + PATIENCE_S
        while missing:
            said = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            assert said is not None, f"the daemon ended before {missing}: {self.stderr()}"
            self.phases = said
            missing = {name: phase for name, phase in missing.items() if said[name][0] != phase}
        return self

    @property
    def layout(self) -> StateLayout:
        return StateLayout(Path(self.config.state_dir))

    def client(self, **options: object) -> Client:
        return Client(self.config, **options)

    def echo(self, text: str) -> str:
        with self.client() as client:
            return echo(client, text)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stderr(self) -> str:
        return (Path(self.config.state_dir) / "stderr").read_text()

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def close(self) -> None:
        family = self.family()
        if self.process.poll() is None:
            self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        say_logs(self.layout)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._said.put(json.loads(line))
        self._said.put(None)


def echo(client: Client, text: str) -> str:
    answer = client.request(ask(text), timeout_s=PATIENCE_S)
    assert isinstance(answer, Echoed)
    return answer.payload.tobytes().decode()


def ask(text: str) -> Echo:
    return Echo(payload=np.frombuffer(text.encode(), dtype=np.uint8))


def gone(pid: int, timeout_s: float = PATIENCE_S) -> bool:
    """Whether a process ends in time. One that nobody reaps any more has ended too."""
    try:
        process = psutil.Process(pid)
        return until(lambda: process.status() == psutil.STATUS_ZOMBIE, timeout_s)
    except psutil.NoSuchProcess:
        return True


def free_address() -> str:
    """Of the ports that the system gives nobody by itself: who binds it next is whoever was told of it."""
    while True:
        address = ("127.0.0.1", random.SystemRandom().randrange(15_000, 30_000))
        with posix.socket() as probe, contextlib.suppress(OSError):
            probe.bind(address)
            return "tcp://{}:{}".format(*address)


def say_logs(layout: StateLayout, lines: int = 40) -> None:
    """pytest shows it of a test that failed: what its processes said last. Elsewhere it would be in the way."""
    if "PYTEST_CURRENT_TEST" not in os.environ:
        return
    for file in sorted(layout.logs.glob("*")):
        said = file.read_text(errors="replace").splitlines()[-lines:]
        print(f"--- {file.name}", *said, sep="\n")


def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
    """Wait for something outside that tells nobody when it happens."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


if __name__ == "__main__":
    sys.exit(main())
