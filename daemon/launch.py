"""Starting and stopping a daemon, as the command line and programs do it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..bus.client import Client
from ..bus.config import Config, subprocess_environment
from ..bus.errors import DaemonAlreadyRunning, DaemonGone, DaemonNotRunning, StartFailed
from ..bus.layout import StateLayout
from ..bus.logs import configure_logs
from ..bus.messages import ActorStatus, DaemonStatus, GetStatus, Shutdown
from .broker import Broker
from .instance import hold_state_directory, read_pid, record_actors
from .loop import Loop, Progress
from .status import Identity
from .supervisor import ActorCommand, Supervisor, actor_commands

# The daemon's own exit codes; `__main__` returns them.
EXIT_USER_ERROR = 2
EXIT_START_FAILED = 3

_LOOK_AGAIN_S = 0.1
_STOP_GRACE_S = 10.0
_LOG_LINES = 12


def run_foreground(
    config: Config, on_progress: Progress | None = None, commands: Sequence[ActorCommand] | None = None
) -> int:
    """Be the daemon until it is told to stop. commands: other actors than the configuration's.

    Raises:
        DaemonAlreadyRunning, StartFailed, InvalidConfig: it cannot start.
    """
    commands = actor_commands(config) if commands is None else commands
    with hold_state_directory(config) as layout:
        configure_logs(config.log, "daemon", layout.logs)
        identity = Identity(version=__version__, pid=os.getpid(), started=time.monotonic())
        broker = Broker(config, {each.actor: each.role for each in commands}, identity)
        supervisor = Supervisor(config, commands)

        def progressed(status: DaemonStatus) -> None:
            record_actors(layout, supervisor.pids)
            if on_progress is not None:
                on_progress(status)

        Loop(config, broker, supervisor, progressed).run()
    return 0


def start_detached(config: Config, timeout_s: float) -> DaemonStatus:
    """Start a daemon in a session of its own and wait until all of its actors are ready.

    Raises:
        DaemonAlreadyRunning: one runs on this state directory.
        StartFailed: an actor was given up or is not ready in time; then nothing is left running.
    """
    layout = StateLayout(Path(config.state_dir))
    if running(config):
        raise DaemonAlreadyRunning(
            f"a daemon (pid {read_pid(layout)}) runs on {layout.root}: stop it with `loractl daemon stop`, "
            "or choose another --state-dir"
        )
    process = _spawn(config, layout)
    try:
        return _when_ready(config, layout, process, time.monotonic() + timeout_s)
    except BaseException:
        process.terminate()
        process.wait(_STOP_GRACE_S)
        raise


def stop(config: Config) -> None:
    """Stop the daemon and wait until it has ended.

    Raises:
        DaemonNotRunning: none runs on this state directory.
        StartFailed: it does not end.
    """
    layout = StateLayout(Path(config.state_dir))
    with Client(config) as client:
        client.request(Shutdown())
    deadline = time.monotonic() + config.daemon.stop_timeout_s + _STOP_GRACE_S
    while layout.pid.exists():
        if time.monotonic() > deadline:
            raise StartFailed(f"the daemon (pid {read_pid(layout)}) does not stop: end it with kill -9")
        time.sleep(_LOOK_AGAIN_S / 2)


def running(config: Config) -> bool:
    """Whether a daemon answers on this state directory."""
    try:
        with Client(config) as client:
            client.request(GetStatus(), timeout_s=_STOP_GRACE_S)
    except (DaemonNotRunning, DaemonGone):
        return False
    return True


def _spawn(config: Config, layout: StateLayout) -> "subprocess.Popen[str]":
    try:
        layout.logs.mkdir(parents=True, exist_ok=True)
        with (layout.logs / "daemon.out").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "loractl.daemon", "--config", "-"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=subprocess_environment({}),
                text=True,
            )
    except OSError as error:
        raise StartFailed(f"the state directory {layout.root} cannot be used: {error}") from error
    assert process.stdin is not None
    process.stdin.write(config.to_json())
    process.stdin.close()
    return process


def _when_ready(
    config: Config, layout: StateLayout, process: "subprocess.Popen[str]", deadline: float
) -> DaemonStatus:
    while True:
        if process.poll() is not None:
            raise StartFailed(f"the daemon ended at its start: {_last_words(layout, 'daemon')}")
        status = _status(config)
        if status is not None:
            if all(actor.phase == "ready" for actor in status.actors):
                return status
            for actor in status.actors:
                if actor.phase == "failed":
                    raise StartFailed(_why(layout, actor))
        if time.monotonic() > deadline:
            late = [a.actor for a in status.actors if a.phase != "ready"] if status else ["the broker"]
            raise StartFailed(f"{', '.join(late)} not ready in time: see {layout.logs}")
        time.sleep(_LOOK_AGAIN_S)


def _status(config: Config) -> DaemonStatus | None:
    try:
        with Client(config) as client:
            status = client.request(GetStatus())
    except (DaemonNotRunning, DaemonGone):
        return None
    assert isinstance(status, DaemonStatus)
    return status


def _why(layout: StateLayout, actor: ActorStatus) -> str:
    return f"{actor.actor} cannot start ({actor.details}): {_last_words(layout, actor.actor)}"


def _last_words(layout: StateLayout, name: str) -> str:
    """What a process said last, and where the rest stands."""
    path = layout.logs / f"{name}.out"
    lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:] if path.exists() else []
    said = "\n".join(f"  {line}" for line in lines)
    return f"see {path}\n{said}" if said else f"see {path}"
