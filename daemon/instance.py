"""One daemon per state directory: the lock, the run directory, and what a killed daemon left behind.

Owns `<state>/run`. The lock is the kernel's (flock), so it goes with its process, however that ends.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import structlog

from ..bus.config import Config
from ..bus.errors import DaemonAlreadyRunning, StartFailed
from ..bus.layout import StateLayout
from ..bus.sockets import checked_address
from .supervisor import kill_group

log = structlog.get_logger()

# Seconds by which two readings of one process's start may differ.
_SAME_START_S = 1.0


@contextmanager
def hold_state_directory(config: Config) -> Iterator[StateLayout]:
    """Make the state directory ready and keep every other daemon off it.

    Raises:
        DaemonAlreadyRunning: another daemon holds it; the text has its pid.
        StartFailed: the directory cannot be written.
        InvalidConfig: its path is too long for sockets.
    """
    layout = StateLayout(Path(config.state_dir))
    for address in (layout.client_socket, layout.actor_socket, layout.event_socket):
        checked_address(address)
    _make_directories(layout)
    with layout.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DaemonAlreadyRunning(
                f"a daemon (pid {read_pid(layout)}) runs on {layout.root}: stop it with `loractl daemon stop`, "
                "or choose another --state-dir"
            ) from None
        _clean_up_after_a_dead_daemon(layout)
        layout.pid.write_text(f"{os.getpid()}\n")
        _write_private(layout.config, config.to_json())
        try:
            yield layout
        finally:
            _remove_run_files(layout)


def record_actors(layout: StateLayout, pids: Mapping[str, int]) -> None:
    """Note which processes are ours, so that the next daemon can end them if this one is killed."""
    started = {}
    for name, pid in pids.items():
        with contextlib.suppress(psutil.Error):
            started[name] = {"pid": pid, "started": psutil.Process(pid).create_time()}
    _write_private(_actors_file(layout), json.dumps(started))


def _make_directories(layout: StateLayout) -> None:
    try:
        for directory in (layout.root, layout.logs, layout.adapters, layout.versions):
            directory.mkdir(parents=True, exist_ok=True)
        layout.run.mkdir(mode=0o700, exist_ok=True)
        # It may be older than this rule: whoever enters it can act as the user who started the daemon.
        layout.run.chmod(0o700)
    except OSError as error:
        raise StartFailed(f"the state directory {layout.root} cannot be used: {error}") from error


def _clean_up_after_a_dead_daemon(layout: StateLayout) -> None:
    try:
        left = json.loads(_actors_file(layout).read_text())
    except (OSError, ValueError):
        left = {}
    for name, each in left.items():
        if _is_still(each["pid"], each["started"]):
            log.warning("orphan.ended", actor=name, pid=each["pid"])
            kill_group(each["pid"])
    _remove_run_files(layout)


def _is_still(pid: int, started: float) -> bool:
    """Whether this is the process that was noted, and not another that got its number since."""
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) < _SAME_START_S)
    except psutil.Error:
        return False


def _remove_run_files(layout: StateLayout) -> None:
    sockets = [layout.client_socket, layout.actor_socket, layout.event_socket]
    for path in (*(Path(each.removeprefix("ipc://")) for each in sockets), layout.pid, _actors_file(layout)):
        path.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def read_pid(layout: StateLayout) -> str:
    """Of the daemon that holds the directory, for messages."""
    try:
        return layout.pid.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _actors_file(layout: StateLayout) -> Path:
    return layout.run / "actors.json"
