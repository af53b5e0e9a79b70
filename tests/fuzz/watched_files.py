"""Tells when anything in this process reaches into a place where it has no business.

Python says of every file that it opens, lists, moves or removes; a link is followed before it is judged.
What libraries open behind Python's back is not seen.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ENTERED = {"os.listdir", "os.scandir", "os.chmod", "os.truncate", "os.utime"}
# These act on a link itself, not on what it leads to.
_NAMED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.rmtree"}
_forbidden: list[str] = []
_reached: list[str] = []


@contextmanager
def watching(*forbidden: Path) -> Iterator[list[str]]:
    """Yields what was reached under these paths while the block ran."""
    _reached.clear()
    _forbidden[:] = [os.path.realpath(path) for path in forbidden]
    try:
        yield _reached
    finally:
        _forbidden.clear()


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _forbidden:
        return
    if event == "open":
        follows = not (isinstance(arguments[2], int) and arguments[2] & os.O_NOFOLLOW)
        _judge(event, arguments[0], follows=follows)
    elif event in _ENTERED:
        _judge(event, arguments[0], follows=True)
    elif event in _NAMED:
        for path in arguments[:2]:
            _judge(event, path, follows=False)


def _judge(event: str, path: object, *, follows: bool) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a descriptor, which was opened before
    named = os.fsdecode(path)
    parent, name = os.path.split(named)
    real = os.path.realpath(named) if follows else f"{os.path.realpath(parent)}/{name}"
    if any(real == each or real.startswith(f"{each}/") for each in _forbidden):
        _reached.append(f"{event} {named} is {real}")


sys.addaudithook(_hear)
