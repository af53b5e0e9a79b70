"""Starting and stopping a daemon, as the command line and programs do it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from .. import __version__
from ..bus.client import Client
from ..bus.config import Config, config_from_json, subprocess_environment
from ..bus.curve import checked_server
from ..bus.errors import DaemonGone, DaemonNotRunning, InvalidConfig, StartFailed
from ..bus.keys import Keys, ensure_local_key
from ..bus.layout import StateLayout
from ..bus.logs import configure_logs
from ..bus.messages import ActorStatus, DaemonStatus, GetStatus, Shutdown
from ..bus.private_files import make_private, open_private
from .broker import Broker
from .chaos import Chaos
from .instance import actors_file, already_running, hold_state_directory, is_held, read_pid, unusable
from .journal.journal import Journal
from .known_tenants import unknown_tenants
from .loop import Loop, Progress
from .processes import end_orphans, last_words, note_processes
from .status import Identity
from .supervisor import ActorCommand, Supervisor, actor_commands

log = structlog.get_logger()

_LOOK_AGAIN_S = 0.05
# A daemon that is stopping has actors to end; this much longer than it allows them, and it hangs.
_STOP_GRACE_S = 10.0
_LAST_LINES = 12


def run_foreground(
    config: Config, on_progress: Progress | None = None, commands: Sequence[ActorCommand] | None = None
) -> int:
    """Be the daemon until it is told to stop; returns the exit code 0.

    on_progress: told at every change of an actor's phase. commands: other actors than the
    configuration's.

    Raises:
        DaemonAlreadyRunning, InvalidConfig: it cannot start here.
        StartFailed, StorageFailed: neither can it, or an actor was given up before all were ready once.
    """
    commands = actor_commands(config) if commands is None else commands
    with hold_state_directory(config) as layout:
        configure_logs(config.log, "daemon", layout.logs)
        end_orphans(actors_file(layout))
        if config.daemon.serves_http:
            ensure_local_key(layout)
        _warn_of_unknown_tenants(config, layout)
        if config.daemon.listen:
            checked_server(layout, config.daemon.listen)
        chaos = Chaos(config.daemon.chaos, config.limits) if config.daemon.chaos else None
        started = time.monotonic()
        journal = Journal(layout, config.journal) if config.journal.enabled else None
        disk = journal.writer.room if journal is not None else None
        identity = Identity(version=__version__, pid=os.getpid(), started=started, chaos=chaos, disk=disk)
        past = journal.past if journal is not None else None
        broker = Broker(config, {each.actor: each.role for each in commands}, identity, past)
        supervisor = Supervisor(config, commands)
        start = _Start(layout)

        def progressed(status: DaemonStatus) -> None:
            # On a full disk the note is missing, and the daemon lives.
            with contextlib.suppress(OSError):
                note_processes(actors_file(layout), supervisor.pids)
            if on_progress is not None:
                on_progress(status)
            if start.failed(status):
                loop.stop()

        loop = Loop(
            config,
            broker,
            supervisor,
            progressed,
            journal=journal.writer if journal is not None else None,
            chaos=chaos,
        )
        try:
            loop.run()
        finally:
            if journal is not None:
                journal.close()
    if start.failure is not None:
        raise start.failure
    return 0


def start_detached(config: Config, timeout_s: float, on_progress: Progress | None = None) -> DaemonStatus:
    """Start a daemon in a session of its own and wait until all of its actors are ready.

    on_progress: told how far it is, again and again while it starts.

    Raises:
        DaemonAlreadyRunning: one runs on this state directory.
        StartFailed: an actor was given up or is not ready in time; then nothing is left running.
    """
    layout = StateLayout(Path(config.state_dir))
    if is_held(layout):
        raise already_running(layout)
    process = _spawn(config, layout)
    try:
        return _when_ready(config, layout, process, time.monotonic() + timeout_s, on_progress)
    except BaseException:
        process.terminate()
        process.wait()  # it ends within `daemon.stop_timeout_s` and what sending takes
        raise


def stop(config: Config) -> None:
    """Stop the daemon and wait until it has ended.

    Raises:
        DaemonNotRunning: none runs on this state directory.
        StartFailed: it does not end.
    """
    layout = StateLayout(Path(config.state_dir))
    pid = read_pid(layout)
    # It may end between taking the request and answering it: gone is what we want.
    with contextlib.suppress(DaemonGone), Client(config) as client:
        client.request(Shutdown())
    deadline = time.monotonic() + config.daemon.stop_timeout_s + _STOP_GRACE_S
    while is_held(layout):
        if time.monotonic() > deadline:
            raise StartFailed(f"the daemon on {layout.root} does not stop: end it with `kill -9 {pid}`")
        time.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def running_daemon(config: Config) -> Iterator[None]:
    """A detached daemon for as long as the block lasts. Raises as `start_detached` and `stop`."""
    start_detached(config, config.daemon.ready_timeout_s)
    try:
        yield
    finally:
        stop(config)


def running(config: Config) -> bool:
    """Whether a daemon runs on this state directory."""
    return is_held(StateLayout(Path(config.state_dir)))


def running_config(config: Config) -> Config:
    """The settings of the daemon that runs on this state directory.

    Raises:
        DaemonNotRunning: none does.
        StartFailed: they cannot be read.
    """
    layout = StateLayout(Path(config.state_dir))
    if not is_held(layout):
        raise DaemonNotRunning(
            f"no daemon runs on {layout.root}: start one with `loractl daemon start --base-model NAME=PATH`"
        )
    try:
        return replace(config_from_json(layout.config.read_text()), state_dir=config.state_dir)
    except (OSError, ValueError, InvalidConfig) as error:
        raise StartFailed(
            f"{layout.config} cannot be read ({error}): stop the daemon and start it"
        ) from error


class _Start:
    """Whether the daemon's start has failed: an actor was given up before all were ready once."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        self._over = False
        self.failure: StartFailed | None = None

    def failed(self, status: DaemonStatus) -> bool:
        if not self._over:
            self.failure = _failure(self._layout, status.actors)
            self._over = self.failure is not None or _all_ready(status)
        return self.failure is not None


def _warn_of_unknown_tenants(config: Config, layout: StateLayout) -> None:
    tenants = [record.tenant for record in Keys(layout).listed()]
    for setting, unknown in unknown_tenants(config.fairness, tenants).items():
        log.warning("settings.unknown_tenants", setting=setting, tenants=unknown, see="loractl keys list")


def _spawn(config: Config, layout: StateLayout) -> "subprocess.Popen[str]":
    try:
        make_private(layout.root, layout.logs)
        with os.fdopen(open_private(_daemon_output(layout)), "w") as output:
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
        raise unusable(layout, error) from error
    assert process.stdin is not None
    # If it has ended already, its last words say why.
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(config.to_json())
    return process


def _when_ready(
    config: Config,
    layout: StateLayout,
    process: "subprocess.Popen[str]",
    deadline: float,
    on_progress: Progress | None,
) -> DaemonStatus:
    status: DaemonStatus | None = None
    while True:
        if process.poll() is not None:
            said = _daemon_output(layout).read_text(errors="replace").strip().removeprefix("error: ")
            raise StartFailed(said or f"the daemon ended at its start: see {layout.logs}")
        status = _status(config) or status
        if status is not None:
            if on_progress is not None:
                on_progress(status)
            if failure := _failure(layout, status.actors):
                raise failure
            if _all_ready(status):
                return status
        if time.monotonic() > deadline:
            late = (
                [actor.actor for actor in status.actors if actor.phase != "ready"]
                if status
                else ["the broker"]
            )
            raise StartFailed(f"not ready in time: {', '.join(late)}; see {layout.logs}")
        time.sleep(_LOOK_AGAIN_S)


def _status(config: Config) -> DaemonStatus | None:
    try:
        with Client(config) as client:
            status = client.request(GetStatus())
    except (DaemonNotRunning, DaemonGone):
        return None
    assert isinstance(status, DaemonStatus)
    return status


def _all_ready(status: DaemonStatus) -> bool:
    return all(actor.phase == "ready" for actor in status.actors)


def _failure(layout: StateLayout, actors: Sequence[ActorStatus]) -> StartFailed | None:
    for actor in actors:
        if actor.phase == "failed":
            file = layout.logs / f"{actor.actor}.out"
            said = "".join(f"\n  {line}" for line in last_words(file, lines=_LAST_LINES))
            return StartFailed(f"{actor.actor} cannot start ({actor.details}): see {file}{said}")
    return None


def _daemon_output(layout: StateLayout) -> Path:
    return layout.logs / "daemon.out"
