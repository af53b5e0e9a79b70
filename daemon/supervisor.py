"""Starts the actors' processes, notices when one is dead or hangs, and starts it again.

Owns the processes. Tells the loop what changed (`Spawned`, `Lost`) and leaves requests to the
broker. Each actor leads a process group of its own, which ends with it: an engine's children never
outlive their actor.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ..bus.config import Config, subprocess_environment
from ..bus.ids import ActorId
from ..bus.layout import StateLayout
from ..bus.messages import ActorRole
from .restarts import Restarts

log = structlog.get_logger()

MODULES: Mapping[ActorRole, str] = {
    "trainer": "loractl.trainer_actor",
    "sampler": "loractl.sampler_actor",
    "bridge": "loractl.tinker_bridge",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorCommand:
    """How one actor is started."""

    actor: ActorId
    role: ActorRole
    argv: Sequence[str]


@dataclass(frozen=True, slots=True)
class Spawned:
    actor: ActorId
    pid: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Lost:
    """for_good: it will not be started again. details: how it ended, in words."""

    actor: ActorId
    for_good: bool
    details: str


Change = Spawned | Lost


def actor_commands(config: Config) -> list[ActorCommand]:
    """The actors that this configuration asks for."""
    layout = StateLayout(Path(config.state_dir))
    names: list[tuple[str, ActorRole]] = [("trainer", "trainer")]
    names += [(f"sampler-{index}", "sampler") for index in range(config.sampler.count)]
    names += [("bridge", "bridge")] if config.daemon.http else []
    return [
        ActorCommand(
            actor=ActorId(name),
            role=role,
            argv=[sys.executable, "-m", MODULES[role], "--config", str(layout.config), "--actor", name],
        )
        for name, role in names
    ]


@dataclass(slots=True)
class _Child:
    """heard: when it last gave a sign of life, or was started. start_at: when to start it, if it is down."""

    command: ActorCommand
    restarts: Restarts
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    heard: float = 0.0
    start_at: float | None = 0.0
    cause: str = ""


@dataclass(slots=True)
class Supervisor:
    config: Config
    commands: Sequence[ActorCommand]
    _children: dict[ActorId, _Child] = field(init=False)
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._children = {
            command.actor: _Child(command, Restarts(self.config.daemon)) for command in self.commands
        }

    @property
    def alive(self) -> bool:
        return any(child.process is not None for child in self._children.values())

    @property
    def pids(self) -> dict[str, int]:
        return {name: child.process.pid for name, child in self._children.items() if child.process}

    def heard(self, actor: ActorId, *, ready: bool, now: float) -> None:
        child = self._children.get(actor)
        if child is None:
            return
        child.heard = now
        if ready:
            child.ready = True
            child.restarts.ready()

    def tick(self, now: float) -> list[Change]:
        """Reap what ended, end what hangs, start what is due."""
        changes: list[Change] = []
        for child in self._children.values():
            if child.process is not None:
                self._end_if_silent(child, now)
                changes += self._reap(child, now)
            due = child.start_at is not None and child.start_at <= now
            if child.process is None and due and not self._stopping:
                changes.append(self._start(child, now))
        return changes

    def next_deadline(self, now: float) -> float:
        """When `tick` is worth calling next, at the latest."""
        dues = [
            child.start_at for child in self._children.values() if child.process is None and child.start_at
        ]
        return min([now + 1.0, *dues])

    def stop(self) -> None:
        """Start nothing any more. What is ready has been told to drain; what is not has nothing to finish."""
        self._stopping = True
        for child in self._children.values():
            if child.process is not None and not child.ready:
                kill_group(child.process.pid)

    def kill_all(self) -> None:
        for child in self._children.values():
            if child.process is not None:
                kill_group(child.process.pid)

    def _start(self, child: _Child, now: float) -> Spawned:
        name = child.command.actor
        output = StateLayout(Path(self.config.state_dir)).logs / f"{name}.out"
        with output.open("ab") as file:
            process = subprocess.Popen(
                child.command.argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=subprocess_environment({"PYTHONUNBUFFERED": "1"}),
            )
        child.process, child.ready, child.heard, child.start_at, child.cause = process, False, now, None, ""
        log.info("actor.spawned", actor=name, pid=process.pid, restarts=child.restarts.total)
        return Spawned(name, process.pid, child.restarts.total)

    def _end_if_silent(self, child: _Child, now: float) -> None:
        daemon = self.config.daemon
        allowed_s = daemon.heartbeat_timeout_s if child.ready else daemon.ready_timeout_s
        if now - child.heard > allowed_s and not child.cause:
            assert child.process is not None
            what = "no heartbeat" if child.ready else "not ready"
            child.cause = f"{what} for {allowed_s:g} s, so it was ended"
            log.error("actor.hung", actor=child.command.actor, cause=child.cause)
            kill_group(child.process.pid)

    def _reap(self, child: _Child, now: float) -> list[Change]:
        assert child.process is not None
        code = child.process.poll()
        if code is None:
            return []
        # What it started must not outlive it: an engine's core would keep the model's memory.
        kill_group(child.process.pid)
        child.process, child.ready = None, False
        details = child.cause or _ending(code)
        if self._stopping:
            child.start_at = None
            return [Lost(child.command.actor, True, details)]
        child.start_at = child.restarts.died(now)
        log.warning("actor.died", actor=child.command.actor, how=details, again=child.start_at is not None)
        return [Lost(child.command.actor, child.start_at is None, details)]


def kill_group(pid: int) -> None:
    """SIGKILL to a process group that we made; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
