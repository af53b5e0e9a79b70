"""The actors' logs as one stream: merged by time, readable, followed while they grow."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rich.text import Text

from ..bus.log_file import older_log

_LEVEL_STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red", "debug": "dim"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event. at: ISO time as written, empty for a line that is not of our making."""

    actor: str
    at: str
    level: str
    event: str
    facts: dict[str, object] = field(default_factory=dict)

    def text(self) -> Text:
        facts = " ".join(f"{n}={_shown(value)}" for n, value in self.facts.items() if n != "exception")
        trace = str(self.facts.get("exception", "")).rstrip()
        return Text.assemble(
            (f"{_clock(self.at):12} ", "dim"),
            (f"{self.actor:10} ", "cyan"),
            (f"{self.level:8}", _LEVEL_STYLES.get(self.level, "")),
            (self.event, "bold" if self.level in ("warning", "error") else ""),
            (f"  {facts}" if facts else "", "" if self.level in ("warning", "error") else "dim"),
            f"\n{trace}" if trace else "",
        )


def parse_line(actor: str, text: str) -> LogLine:
    """Read a line of a log; one that is not JSON of ours is shown as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return LogLine(actor, "", "", text)
    facts = {str(name): fact for name, fact in value.items()}
    at, level, event = (str(facts.pop(key, "")) for key in ("timestamp", "level", "event"))
    return LogLine(actor, at, level, event, {n: f for n, f in facts.items() if n != "process"})


class _Place(NamedTuple):
    """How far a file was read, and which, whatever it is called now."""

    file: int
    offset: int


class LogFolder:
    """Reads what was added to every `*.log` of a folder since it was last asked, and before it at first; a log
    that became too long goes on in a new file of its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, _Place] = {}

    def new_lines(self) -> list[LogLine]:
        """Whole lines only, oldest first. A line without a time stays behind the one before it."""
        lines: list[tuple[str, LogLine]] = []
        for file in sorted(self._folder.glob("*.log")):
            at = ""
            for text in self._new_text(file).split("\n")[:-1]:
                line = parse_line(file.stem, text)
                at = line.at or at
                lines.append((at, line))
        return [line for _, line in sorted(lines, key=lambda pair: pair[0])]

    def _new_text(self, file: Path) -> str:
        read, older = self._read.get(file), older_log(file)
        try:
            with file.open("rb") as stream:
                begun_anew = read is None or read.file != _number(stream)
                before = _rest(older, read, not_this=_number(stream)) if begun_anew else b""
                added, self._read[file] = _added(stream, read)
        except FileNotFoundError:  # just now it gets another name
            return ""
        return (before + added).decode(errors="replace")


def _number(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_ino


def _added(stream: BinaryIO, read: _Place | None) -> tuple[bytes, _Place]:
    """Whole lines behind what was read of a file, and how far that is; all, where it is another file, or a
    shorter one."""
    status = os.fstat(stream.fileno())
    known = read is not None and read.file == status.st_ino and read.offset <= status.st_size
    offset = read.offset if read is not None and known else 0
    stream.seek(offset)
    added = stream.read()
    whole = added[: added.rfind(b"\n") + 1]
    return whole, _Place(status.st_ino, offset + len(whole))


def _rest(older: Path, read: _Place | None, *, not_this: int) -> bytes:
    """What was not read yet of the file that went before."""
    try:
        with older.open("rb") as stream:
            return b"" if _number(stream) == not_this else _added(stream, read)[0]
    except FileNotFoundError:
        return b""


def merged_log(folder: Path, *, last: int, wait: Callable[[], None] | None = None) -> Iterator[LogLine]:
    """The last lines (0: all of them), then, when given how to wait a moment, what is added, for ever."""
    logs = LogFolder(folder)
    lines = logs.new_lines()
    yield from lines[-last:] if last else lines
    while wait is not None:
        wait()
        yield from logs.new_lines()


def _clock(at: str) -> str:
    """The local time of day to the millisecond, or the text itself when it is no time."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return at


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return (
            value if value and not any(c.isspace() for c in value) else json.dumps(value, ensure_ascii=False)
        )
    return json.dumps(value, ensure_ascii=False)
