"""One daemon per state directory: the lock, the run directory, and the files a killed daemon left in it.

Owns `<state>/run`. The lock is the kernel's (flock), so it goes with its process, however that ends.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..bus.config import Config
from ..bus.errors import DaemonAlreadyRunning, InvalidConfig, StartFailed
from ..bus.layout import StateLayout
from ..bus.sockets import checked_address

# `is_held` takes the lock for an instant: whoever wants to keep it tries for longer than that.
_TRIES = 5
_TRY_AGAIN_S = 0.02


@contextmanager
def hold_state_directory(config: Config) -> Iterator[StateLayout]:
    """Make the state directory ready and keep every other daemon off it.

    Raises:
        DaemonAlreadyRunning: another daemon holds it; the text has its pid.
        StartFailed: the directory cannot be written.
        InvalidConfig: it can be none, or its path is too long for sockets.
    """
    layout = StateLayout(Path(config.state_dir))
    for address in _addresses(layout):
        checked_address(address)
    # What people train on lies here, and what they made of it: whatever we write from now on, or an actor of
    # ours does, is for our user alone.
    os.umask(0o077)
    with _usable(layout):
        _make_directories(layout)
        lock = layout.lock.open("a")
    with lock:
        _claim(lock, layout)
        with _usable(layout):
            _remove_sockets_and_pid(layout)
            layout.pid.write_text(f"{os.getpid()}\n")
            _write_private(layout.config, config.to_json())
        try:
            yield layout
        finally:
            _remove_sockets_and_pid(layout)
            actors_file(layout).unlink(missing_ok=True)


def is_held(layout: StateLayout) -> bool:
    """Whether a daemon lives on this state directory, however it feels.

    Raises:
        InvalidConfig: the directory belongs to somebody else.
    """
    try:
        with layout.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    except PermissionError as error:
        raise InvalidConfig(f"{layout.lock} may not be opened: whose state directory is it?") from error
    return False


def already_running(layout: StateLayout) -> DaemonAlreadyRunning:
    return DaemonAlreadyRunning(
        f"a daemon (pid {read_pid(layout)}) runs on {layout.root}: stop it with `loractl daemon stop`, "
        "or choose another --state-dir"
    )


def read_pid(layout: StateLayout) -> str:
    """Of the daemon that holds the directory, for messages."""
    try:
        return layout.pid.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def actors_file(layout: StateLayout) -> Path:
    """Where the daemon notes its actors' processes."""
    return layout.run / "actors.json"


def _claim(lock: TextIO, layout: StateLayout) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_AGAIN_S)
        else:
            return
    raise already_running(layout)


@contextmanager
def _usable(layout: StateLayout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(layout, error) from error


def unusable(layout: StateLayout, error: OSError) -> InvalidConfig | StartFailed:
    """A path that cannot be a state directory is its user's mistake; a full disk, say, is not."""
    misnamed = isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError | PermissionError)
    kind = InvalidConfig if misnamed else StartFailed
    return kind(
        f"the state directory {layout.root} cannot be used: {(error.strerror or str(error)).lower()}; "
        "choose another --state-dir"
    )


def _make_directories(layout: StateLayout) -> None:
    for directory in (layout.root, layout.logs, layout.adapters, layout.versions):
        directory.mkdir(parents=True, exist_ok=True)
    layout.run.mkdir(mode=0o700, exist_ok=True)
    _check_own(layout.run)
    # It may be older than this rule: whoever enters it can act as the user who started the daemon.
    layout.run.chmod(0o700)
    if layout.run.stat().st_mode & 0o077:  # a file system without rights, say
        raise InvalidConfig(
            f"{layout.run} may be entered by others, who could then act as its owner: choose a --state-dir on a "
            "file system with rights"
        )


def _check_own(run: Path) -> None:
    """Raises InvalidConfig: the directory of the sockets is somebody else's."""
    found = run.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise InvalidConfig(f"{run} is no directory of its own: remove it, or choose another --state-dir")
    if found.st_uid != os.geteuid():
        raise InvalidConfig(f"{run} belongs to another user: whose state directory is it?")


def _remove_sockets_and_pid(layout: StateLayout) -> None:
    for address in _addresses(layout):
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
    layout.pid.unlink(missing_ok=True)


def _addresses(layout: StateLayout) -> tuple[str, str, str]:
    return layout.client_socket, layout.actor_socket, layout.event_socket


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
