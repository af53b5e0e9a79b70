"""Small files with secrets: changed by one process at a time, whole or as before, for their owner alone.

What they hold is `keys` and `curve`'s.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from .disk_sync import sync
from .errors import StorageFailed
from .layout import StateLayout
from .private_files import make_private

T = TypeVar("T")

# What tells one state of a file from the next: every change is a new file in its place.
_Stamp = tuple[int, int, int] | None


class KeyFile(Generic[T]):
    """A file of JSON that other processes change, too. Reading costs one stat where nothing changed."""

    def __init__(self, file: Path, kind: type[T], empty: T, *, holds: str) -> None:
        """empty: what an absent file holds. holds: for messages, such as "API keys"."""
        self._file, self._kind, self._empty, self._holds = file, kind, empty, holds
        self._stamp: _Stamp = None
        self._content = empty

    def content(self) -> tuple[T, bool]:
        """What the file holds, and whether that was read anew. Raises StorageFailed."""
        try:
            stamp = _stamp_of(self._file.stat())
        except OSError:
            stamp = None  # absent, or unreadable: reading says which
        if stamp is not None and stamp == self._stamp:
            return self._content, False
        self._content, self._stamp = self.read()
        return self._content, True

    def read(self) -> tuple[T, _Stamp]:
        """Read it now. Raises StorageFailed."""
        try:
            with self._file.open("rb") as opened:
                stamp, data = _stamp_of(os.fstat(opened.fileno())), opened.read()
        except FileNotFoundError:
            return self._empty, None
        except OSError as error:
            raise unusable(self._file, error, self._holds) from error
        try:
            return msgspec.json.decode(data, type=self._kind), stamp
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StorageFailed(
                f"{self._file} holds no {self._holds} that loractl wrote ({error}): mend it, or remove it and make new keys"
            ) from error

    def write(self, content: T) -> None:
        """Only while `changing`. Raises OSError."""
        replace(self._file, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


@contextmanager
def changing(layout: StateLayout, *, holds: str) -> Iterator[None]:
    """One change at a time, whichever process makes it: the lock is the state directory's own.

    Raises:
        StorageFailed: the state directory cannot be read or written.
    """
    try:
        make_private(layout.root)
        directory = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise unusable(layout.root, error, holds) from error


def replace(file: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also after a crash, and the new one once this has returned; only
    its owner may read it.

    Only while `changing`. Raises OSError.
    """
    aside = file.with_name(f".{file.name}.new")  # one writer at a time: the lock is held
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
        written.write(data)
        written.flush()
        os.fsync(written.fileno())
    aside.replace(file)
    sync(file.parent)  # a key that was shown, or revoked, is so after a loss of power, too


def unusable(path: Path, error: OSError, holds: str) -> StorageFailed:
    return StorageFailed(f"{path} cannot be used for {holds}: {(error.strerror or str(error)).lower()}")


def _stamp_of(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
