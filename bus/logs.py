"""Logs are events: JSON lines in a file per process, and readable lines where a person looks on.

An event's name is dotted and past tense, facts are keys: `log.info("slot.swapped", slot=3)`. What
people train on and sample never reaches a log: `withhold_text` puts its size in its place.
"""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import structlog

from .config import LogConfig
from .log_file import LogFile

# Keys under which somebody's text or tokens would stand.
_PRIVATE = frozenset(
    {"body", "completion", "content", "message", "messages", "payload", "prompt", "text", "texts", "tokens"}
)
_LONGEST_FACT = 2000
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

EventDict = MutableMapping[str, Any]


def configure_logs(config: LogConfig, actor: str, directory: Path, *, terminal: TextIO | None = None) -> None:
    """Send every event of this process to `<directory>/<actor>.log`; call it once, first of all.

    terminal: also write readable lines there, such as `sys.stderr` of a daemon in the foreground;
    a stream that is no terminal gets nothing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = LogFile(directory / f"{actor}.log", actor, keep_bytes=config.keep_bytes)
    shown = terminal if terminal is not None and terminal.isatty() else None
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Named(actor),
            withhold_text,
            *([_Shown(shown)] if shown else []),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
        cache_logger_on_first_use=True,
    )


def withhold_text(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace what may be somebody's text or tokens by its size. Numbers stay."""
    for key, value in event.items():
        if isinstance(value, np.ndarray):
            event[key] = f"<{value.dtype} {list(value.shape)}>"
        elif key in _PRIVATE and isinstance(value, str | bytes | list | tuple | dict):
            event[key] = f"<{len(value)} {'characters' if isinstance(value, str) else 'items'}>"
        elif isinstance(value, str) and len(value) > _LONGEST_FACT:
            event[key] = f"{value[:_LONGEST_FACT]}…"
    return event


class _Named:
    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        event["process"] = self._process
        return event


class _Shown:
    """Writes a readable copy of an event to a terminal."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._render = structlog.dev.ConsoleRenderer(
            colors=True,
            exception_formatter=structlog.dev.plain_traceback,  # without local variables
        )

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        self._terminal.write(f"{self._render(logger, method, dict(event))}\n")
        return event
