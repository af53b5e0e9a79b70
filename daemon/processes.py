"""Processes as the system sees them: groups that end as a whole, and orphans that are truly ours.

Every actor leads a process group of its own, so whatever it started (an engine's core, a tracker of
shared memory) ends with it.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from ..bus.config import CRASH_AT, subprocess_environment
from ..bus.log_file import older_log

log = structlog.get_logger()

# By how much two readings of one process's start may differ.
_SAME_START_S = 1.0
# How long a killed orphan may take until the memory it held is free.
_ORPHAN_END_S = 2.0
_LOOK_AGAIN_S = 0.02

_MOST_PRINTED_BYTES = 16 * 2**20

# Stands in an actor's output before each of its lives.
START_MARK = "--- started "


def spawn(argv: Sequence[str], output: Path, *, again: bool = False) -> "subprocess.Popen[bytes]":
    """Start an actor as the leader of its own group; what it prints goes to the end of `output`.

    again: after its death. One that was told to die somewhere (`bus.crash_points`) does so in its first life.

    Raises:
        OSError: the system cannot start it.
    """
    _make_room(output)
    with output.open("ab", buffering=0) as file:
        file.write(f"{START_MARK}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=subprocess_environment({"PYTHONUNBUFFERED": "1", **({CRASH_AT: ""} if again else {})}),
        )


def _make_room(output: Path) -> None:
    """What earlier lives printed makes room for the next one's, if it is much."""
    with contextlib.suppress(OSError):  # there is none yet, or the disk will have none of it
        if output.stat().st_size > _MOST_PRINTED_BYTES:
            output.replace(older_log(output))


def end_if_dead(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit code of a process that has ended, its group ended with it; None while it runs.

    Safe because the leader is not reaped yet when its group is killed: until then the system gives
    its number to no other process or group.
    """
    if psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        return None
    kill_group(process.pid)
    return process.wait()


def kill_group(leader: int) -> None:
    """SIGKILL to a process group; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def last_words(output: Path, *, lines: int) -> list[str]:
    """What an actor printed last in its latest life."""
    if not output.is_file():
        return []
    said = output.read_text(errors="replace").splitlines()
    starts = [index for index, line in enumerate(said) if line.startswith(START_MARK)]
    return said[starts[-1] + 1 if starts else 0 :][-lines:]


# --- what a killed daemon leaves behind ----------------------------------------------------------


def note_processes(file: Path, pids: Mapping[str, int]) -> None:
    """Write down which processes are ours, so that the next daemon can end them if this one cannot."""
    noted = {}
    for name, pid in pids.items():
        with contextlib.suppress(psutil.Error):
            noted[name] = {"pid": pid, "started": psutil.Process(pid).create_time()}
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(noted))
    aside.replace(file)


def end_orphans(file: Path) -> None:
    """End what a daemon that was killed noted, unless the number belongs to somebody else by now."""
    for name, (pid, started) in _noted(file).items():
        orphans = [process for process in _group(pid) if _is_ours(process, pid, started)]
        if orphans:
            log.warning("orphan.ended", actor=name, pid=pid, processes=len(orphans))
            kill_group(pid)
            _wait_until_gone(orphans)
    file.unlink(missing_ok=True)


def _noted(file: Path) -> dict[str, tuple[int, float]]:
    """What `note_processes` wrote; nothing if the file is not there, torn or foreign."""
    try:
        entries = json.loads(file.read_text()).items()
        return {name: (int(each["pid"]), float(each["started"])) for name, each in entries}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _group(leader: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _is_ours(process: psutil.Process, leader: int, started: float) -> bool:
    """The leader began when we noted. A member may have outlived it, and was started by the same Python."""
    try:
        if psutil.pid_exists(leader):
            return bool(abs(psutil.Process(leader).create_time() - started) < _SAME_START_S)
        later = process.create_time() > started - _SAME_START_S
        return bool(later and process.exe() == psutil.Process().exe())
    except psutil.Error:
        return False


def _wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    deadline = time.monotonic() + _ORPHAN_END_S
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
