"""A daemon of the crash test: `loractl daemon start` in a process of its own, again whenever it was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from loractl.bus.client import Client
from loractl.bus.config import CRASH_AT, Config, load_config, subprocess_environment
from loractl.bus.errors import DaemonGone, DaemonNotRunning
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.messages import DaemonStatus, GetStatus
from loractl.daemon.instance import actors_file

MODEL = "tiny"
ACTORS = ("trainer", "sampler-0", "bridge")
# A whole start takes a few seconds of a quiet core.
PATIENCE_S = 120.0
_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = [sys.executable, "-c", "from loractl.cli import main; main()", "daemon", "start"]


def settings(model: Path, *, chaos: int = 0) -> dict[str, dict[str, object]]:
    return {
        "model": {
            "name": MODEL,
            "path": str(model),
            "device": "cpu",
            "dtype": "float32",
            "max_sequence_tokens": 64,
        },
        "trainer": {"slots": 4, "max_rank": 8, "threads": 1},
        "sampler": {"count": 1, "engine": "torch"},
        # Snapshots in the middle of everything; so recovery takes up both them and what came after.
        "journal": {"snapshot_s": 2.0},
        "daemon": {
            "http": "auto",
            "heartbeat_s": 0.5,
            "restart_first_s": 0.05,
            "restart_max_s": 0.2,
            "restart_limit": 1_000_000,
            "chaos": chaos,
        },
    }


def write_settings(state: Path, tree: dict[str, dict[str, object]]) -> None:
    state.mkdir(parents=True, exist_ok=True)
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        # JSON's numbers, texts and truths are TOML's.
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (state / "loractl.toml").write_text("\n".join(lines) + "\n")


@dataclass
class CrashedDaemon:
    state: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def layout(self) -> StateLayout:
        return StateLayout(self.state)

    @property
    def config(self) -> Config:
        return load_config(state_dir=str(self.state), environ={})

    @property
    def url(self) -> str:
        """Where the bridge is, was, or will be."""
        return f"http://127.0.0.1:{self.layout.http_port.read_text().strip()}"

    def start(self, *, crash_at: str = "") -> None:
        """Start it and wait for nothing. crash_at: where it, or one of its actors, is to die."""
        environment = {"PYTHONPATH": str(_ROOT / ".pkg"), "OMP_NUM_THREADS": "1", CRASH_AT: crash_at}
        with (self.state / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [*_COMMAND, "--state-dir", str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=subprocess_environment(environment),
                start_new_session=True,
            )

    def until_ready(self) -> DaemonStatus:
        """Raises TimeoutError, with what it said."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and all(actor.phase == "ready" for actor in status.actors):
                return status
            if self.process is not None and self.process.poll() is not None:
                break
            threading.Event().wait(0.05)
        raise TimeoutError(f"the daemon did not get ready:\n{(self.state / 'said').read_text()[-2000:]}")

    def status(self) -> DaemonStatus | None:
        try:
            with Client(self.config) as client:
                answer = client.request(GetStatus(), timeout_s=5)
        except (DaemonNotRunning, DaemonGone, TimeoutError):
            return None
        assert isinstance(answer, DaemonStatus)
        return answer

    def key(self, tenant: str) -> str:
        return Keys(self.layout).create(tenant)

    # --- killing ---------------------------------------------------------------------------------

    def kill(self, target: str) -> list[int]:
        """kill -9: an actor by its name, "daemon", or "all". Returns the processes that were there."""
        actors = self.actors()
        if target == "all":
            return [*self._kill_daemon(), *(pid for name in actors for pid in _kill_group(actors[name]))]
        if target == "daemon":
            return self._kill_daemon()
        return _kill_group(actors[target]) if target in actors else []

    def actors(self) -> dict[str, int]:
        """Processes, by actor, as the daemon noted them."""
        try:
            noted = json.loads(actors_file(self.layout).read_text())
        except (OSError, ValueError):
            return {}
        return {name: each["pid"] for name, each in noted.items()}

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _kill_daemon(self) -> list[int]:
        if self.process is None or self.has_ended:
            return []
        self.process.kill()
        self.process.wait()
        return [self.process.pid]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill("all")
        self.kill("all")


def _kill_group(pid: int) -> list[int]:
    """An actor leads a group of its own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return []
    return [pid]


def pick(chance: random.Random, targets: dict[str, int]) -> str:
    """targets: weights by name."""
    return chance.choices([*targets], weights=[*targets.values()])[0]
