"""The actors' logs as one stream: merged by time, readable, followed while they grow."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.text import Text

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


class LogFolder:
    """Reads what was added to every `*.log` of a folder since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

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
        offset = self._read.get(file, 0)
        if file.stat().st_size < offset:  # it was begun anew
            offset = 0
        with file.open("rb") as stream:
            stream.seek(offset)
            added = stream.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read[file] = offset + len(whole)
        return whole.decode(errors="replace")


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
