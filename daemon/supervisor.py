"""Starts the actors' processes, notices when one is dead or hangs, and starts it again.

Owns the processes. Tells the loop what changed (`Spawned`, `Lost`) and leaves requests to the
broker; when to start again and when to give up is `restarts`.
"""

import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ..bus.config import Config
from ..bus.ids import ActorId
from ..bus.layout import StateLayout
from ..bus.messages import ActorRole
from .processes import end_if_dead, ending, kill_group, spawn
from .restarts import Lifeline

log = structlog.get_logger()

# What an actor exits with when trying again would change nothing: a wrong path, a wrong setting.
CANNOT_START = 3

_MODULES: Mapping[ActorRole, str] = {
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
    """for_good: it will not be started again. details: how it ended, in words. killed: from outside."""

    actor: ActorId
    for_good: bool
    details: str
    killed: bool = False


Change = Spawned | Lost


def actor_commands(config: Config) -> list[ActorCommand]:
    """The actors that this configuration asks for."""
    layout = StateLayout(Path(config.state_dir))
    names: list[tuple[str, ActorRole]] = [("trainer", "trainer")]
    names += [(f"sampler-{index}", "sampler") for index in range(config.sampler.count)]
    names += [("bridge", "bridge")] if config.daemon.serves_http else []
    return [
        ActorCommand(
            actor=ActorId(name),
            role=role,
            argv=[sys.executable, "-m", _MODULES[role], "--config", str(layout.config), "--actor", name],
        )
        for name, role in names
    ]


@dataclass(slots=True)
class _Child:
    """start_at: when to start it while it is down, infinity when never. cause: why we ended it."""

    command: ActorCommand
    lifeline: Lifeline
    process: "subprocess.Popen[bytes] | None" = None
    start_at: float = 0.0
    cause: str = ""


@dataclass(slots=True)
class Supervisor:
    """stopping: nothing is started any more."""

    config: Config
    commands: Sequence[ActorCommand]
    _children: dict[ActorId, _Child] = field(init=False)
    stopping: bool = False

    def __post_init__(self) -> None:
        self._children = {
            command.actor: _Child(command, Lifeline(self.config.daemon)) for command in self.commands
        }

    @property
    def alive(self) -> bool:
        return any(child.process is not None for child in self._children.values())

    @property
    def pids(self) -> dict[str, int]:
        return {name: child.process.pid for name, child in self._children.items() if child.process}

    def heard(self, actor: ActorId, *, ready: bool, now: float, busy_s: float = 0.0, at: str = "") -> None:
        """An actor gave a sign of life. busy_s, at: see `Heartbeat`."""
        child = self._children.get(actor)
        if child is None:
            return
        if ready:
            child.lifeline.ready(now)
        else:
            child.lifeline.heard(now, busy_s=busy_s, at=at)

    def tick(self, now: float) -> list[Change]:
        """End what hangs, clear away what ended, start what is due."""
        changes: list[Change] = []
        for child in self._children.values():
            if child.process is not None:
                self._end_if_hung(child, child.process, now)
                changes += self._clear_away(child, child.process, now)
            if child.process is None and child.start_at <= now and not self.stopping:
                changes.append(self._start(child, now))
        return changes

    def next_deadline(self) -> float:
        """When `tick` has something to do, unless a process ends before."""
        return min((_deadline(child) for child in self._children.values()), default=math.inf)

    def stop(self) -> None:
        """Start nothing any more. What is ready has been told to drain; what is not has nothing to finish."""
        self.stopping = True
        for child in self._children.values():
            child.start_at = math.inf
            if child.process is not None and not child.lifeline.is_ready:
                kill_group(child.process.pid)

    def steady(self, now: float) -> list[ActorId]:
        """Those that have run well for long enough: another death is the first in a row."""
        return [
            name for name, child in self._children.items() if child.process and child.lifeline.is_steady(now)
        ]

    def kill(self, actor: ActorId) -> None:
        """As if somebody else had: it is noticed, and started again, as any death."""
        child = self._children[actor]
        if child.process is not None:
            kill_group(child.process.pid)

    def kill_all(self) -> None:
        for child in self._children.values():
            if child.process is not None:
                kill_group(child.process.pid)

    def _start(self, child: _Child, now: float) -> Change:
        name = child.command.actor
        try:
            output = StateLayout(Path(self.config.state_dir)).logs / f"{name}.out"
            process = spawn(child.command.argv, output, again=child.lifeline.restarts > 0)
        except OSError as error:  # no memory, no process numbers, no such program
            return self._lost(child, f"could not be started: {error}", now)
        child.process, child.start_at, child.cause = process, math.inf, ""
        child.lifeline.started(now)
        log.info("actor.spawned", actor=name, pid=process.pid, restarts=child.lifeline.restarts)
        return Spawned(name, process.pid, child.lifeline.restarts)

    def _end_if_hung(self, child: _Child, process: "subprocess.Popen[bytes]", now: float) -> None:
        cause = None if child.cause else child.lifeline.overdue(now)
        if cause is not None:
            child.cause = f"{cause} and was ended"
            log.error("actor.hung", actor=child.command.actor, cause=cause)
            kill_group(process.pid)

    def _clear_away(self, child: _Child, process: "subprocess.Popen[bytes]", now: float) -> list[Change]:
        code = end_if_dead(process)
        if code is None:
            return []
        child.process = None
        details = child.cause or ending(code)
        if self.stopping:
            log.info("actor.stopped", actor=child.command.actor, how=details)
            return [Lost(child.command.actor, True, details)]
        killed = code == -signal.SIGKILL and not child.cause
        return [self._lost(child, details, now, hopeless=code == CANNOT_START, killed=killed)]

    def _lost(
        self, child: _Child, details: str, now: float, *, hopeless: bool = False, killed: bool = False
    ) -> Lost:
        child.start_at = child.lifeline.died(now, hopeless=hopeless)
        for_good = child.start_at == math.inf
        log.error("actor.given_up" if for_good else "actor.died", actor=child.command.actor, how=details)
        return Lost(child.command.actor, for_good, details, killed)


def _deadline(child: _Child) -> float:
    if child.process is None:
        return child.start_at
    return math.inf if child.cause else child.lifeline.next_deadline()
