"""Files and directories that are whole or absent, whatever dies in between.

Everything is written aside under a name that begins with a dot, synced, then renamed; so a reader
never meets half of it, and whatever a crash left behind is recognised by its name. What the files
mean is left to `registry`, `checkpoints`, `snapshots` and `publishing`.
"""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

import msgspec

from ..bus.crash_points import crash_point
from ..bus.disk_sync import sync
from ..bus.errors import StorageFailed

_ASIDE = ".aside-"
# Of a file that describes others; the largest that is written has some kilobytes.
_DESCRIPTION_BYTES = 4 * 2**20
# What the numbers of our directories have at most.
_DIGITS = 15

T = TypeVar("T")


class NotSynced(OSError):
    """What was done shows, could not be undone, and may be lost with the machine's power."""


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a failure of the disk into an error that the client can read."""
    try:
        yield
    except NotSynced as error:
        raise StorageFailed(f"cannot {what}: {error.strerror}; it may have been done all the same") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageFailed(f"cannot {what}: {reason}; nothing was changed") from error


def write_file(file: Path, data: bytes) -> None:
    """Replace a file's content. A reader sees the old or the new one, after a NotSynced the new one."""
    _make_directory(file.parent)
    aside = _aside(file)
    try:
        aside.write_bytes(data)
        crash_point("file.written")
        sync(aside)
        crash_point("file.synced")
        aside.replace(file)
        crash_point("file.renamed")
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    try:
        sync(file.parent)
    except OSError as error:
        raise NotSynced(error.errno, error.strerror) from error


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the block ends, and vanishes if it raises."""
    _make_directory(final.parent)
    aside = _aside(final)
    aside.mkdir()
    try:
        yield aside
        crash_point("file.written")
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        crash_point("file.synced")
        aside.rename(final)
        crash_point("file.renamed")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    try:
        _sync_or_move_back(final, aside)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove_directory(directory: Path) -> None:
    """Remove a directory so that no one ever sees half of it. Absent is fine. Raises OSError: it is there."""
    aside = _aside(directory)
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return
    _sync_or_move_back(aside, directory)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove what a crash left aside directly in `directory`, as far as the disk lets it: it costs space only."""
    with suppress(OSError):
        for path in directory.iterdir():
            if path.name.startswith(_ASIDE):
                _try_to_remove(path)


def next_number(*directories: Path) -> int:
    """A number above all that name something directly in these directories, whatever it is: 1 at first."""
    named: list[int] = []
    for directory in directories:
        with suppress(FileNotFoundError, NotADirectoryError):
            if not directory.is_symlink():
                named += [int(path.name) for path in directory.iterdir() if is_number(path.name)]
    return max(named, default=0) + 1


def is_number(name: str) -> bool:
    """Whether a name can be a number of ours: plain digits, and few enough that there is a next one."""
    return name.isascii() and name.isdecimal() and len(name) <= _DIGITS


def link_file(source: Path, target: Path) -> None:
    """The same content under another name: the same bytes on disk, where the file system has links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copyfile(source, target)


def file_digest(file: Path) -> str:
    """SHA-256 in hex. Raises OSError: it is not there, or no plain file."""
    with open_plain(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def open_plain(file: Path) -> BufferedReader:
    """For reading. Raises OSError: it is not there, or no plain file, such as a link or a pipe."""
    opened = os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        return opened
    opened.close()
    raise OSError(errno.EINVAL, "no plain file", str(file))


def file_size(file: Path) -> int:
    """Raises OSError: it is not there, or no plain file."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no plain file", str(file))
    return found.st_size


def read_description(file: Path, kind: type[T]) -> T:
    """What a small file of ours says.

    Raises:
        OSError: it is not there, or no small plain file.
        msgspec.DecodeError: it says something else.
    """
    with open_plain(file) as opened:
        text = opened.read(_DESCRIPTION_BYTES + 1)
    if len(text) > _DESCRIPTION_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
    return decoded(text, kind)


def decoded(text: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Raises msgspec.DecodeError, whatever is wrong with it, and for integers that no message can hold."""
    try:
        found = msgspec.json.decode(text, type=kind)
        msgspec.msgpack.encode(found)
    except (UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise msgspec.DecodeError(str(error)) from error
    return found


def is_linked(path: Path, home: Path) -> bool:
    """Whether a link lies on the way from `home`, which may be one itself: what is behind it is not ours."""
    steps = path.relative_to(home).parts
    return any(home.joinpath(*steps[: count + 1]).is_symlink() for count in range(len(steps)))


def own_directories(directory: Path, home: Path) -> list[Path]:
    """Those that lie directly in a directory, which need not be there; nothing behind links."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if not is_linked(directory, home):
            return [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]
    return []


def refuse_links(path: Path, home: Path, *, what: str) -> None:
    """Raises StorageFailed: what would be changed there lies elsewhere."""
    with storage_errors(what):
        linked = is_linked(path, home)
    if linked:
        raise StorageFailed(f"cannot {what}: a link lies where its directory should be; nothing was changed")


def _sync_or_move_back(path: Path, before: Path) -> None:
    """A directory that was renamed stays so, or is where it was `before` if that cannot be made sure.

    Raises:
        NotSynced: nor could it be moved back.
        OSError: it is where it was.
    """
    try:
        sync(path.parent)
    except OSError as error:
        try:
            path.rename(before)
        except OSError:
            raise NotSynced(error.errno, error.strerror) from error
        raise


def _try_to_remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _make_directory(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def _aside(path: Path) -> Path:
    return path.with_name(f"{_ASIDE}{secrets.token_hex(8)}")
