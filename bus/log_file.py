"""The file that a process logs to: it has a bound, and a full disk costs lines of it, never the process.

Lines beyond the bound go, the oldest first: `<actor>.log` becomes `<actor>.log.old` when it holds half of what
is kept, and takes the place of the one before. Whoever reads along finds the rest of a file there.
"""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path


def older_log(file: Path) -> Path:
    """Where the lines before those of a log lie, if there were any."""
    return file.with_name(f"{file.name}.old")


class LogFile:
    """What structlog writes to, one line at a time, under a lock of its own. Its methods raise no OSError."""

    def __init__(self, file: Path, actor: str, *, keep_bytes: int) -> None:
        """keep_bytes: of this log altogether; 0 is no bound. Raises OSError: the file cannot be opened."""
        self._file = file
        self._actor = actor
        self._most_bytes = keep_bytes // 2
        self._dropped = 0
        self._torn = False
        self._open()

    def write(self, text: str) -> None:
        line = text.encode(errors="replace")
        if self._most_bytes and self._size_bytes and self._size_bytes + len(line) > self._most_bytes:
            self._begin_anew()
        if self._dropped and self._wrote(self._said_dropped()):
            self._dropped = 0
        if not self._wrote(line):
            self._dropped += 1

    def flush(self) -> None:
        """Nothing waits: a crash loses no whole line."""

    def _wrote(self, line: bytes) -> bool:
        """Write a line, behind whatever of another one got into the file before the disk was full."""
        line = b"\n" + line if self._torn else line
        try:
            count = os.write(self._descriptor, line)
        except OSError:
            return False
        self._size_bytes += count
        self._torn = not line[:count].endswith(b"\n")
        return not self._torn

    def _said_dropped(self) -> bytes:
        event = {
            "event": "log.lines_dropped",
            "level": "warning",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "process": self._actor,
            "lines": self._dropped,
        }
        return f"{json.dumps(event)}\n".encode()

    def _begin_anew(self) -> None:
        # Should it not be possible, the file grows on, and the next line tries again.
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                self._file.replace(older_log(self._file))
            before = self._descriptor
            self._open()
            os.close(before)

    def _open(self) -> None:
        # Appending, so that what another process of this name writes yet stays whole.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._file, flags, 0o666)
        self._size_bytes = os.fstat(self._descriptor).st_size
