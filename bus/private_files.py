"""Directories and files that only our user may read, made by processes of whatever umask."""

import os
from pathlib import Path


def make_private(*directories: Path) -> None:
    """Those that are there keep their mode, and what lies above them is made as ever. Raises OSError."""
    for directory in directories:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def open_private(file: Path) -> int:
    """A descriptor to write the file with, which is made anew or emptied. Raises OSError."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
