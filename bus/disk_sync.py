"""Files and the names of files, made to outlive the machine's power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
