"""The last line of defence of the command line: whatever goes wrong becomes one line and an exit code."""

import traceback
from collections.abc import Callable

from ..bus.config import load_config
from ..bus.errors import LoractlError, StartFailed
from .rows import BadRows
from .terminal import EXIT_FAILED, EXIT_INTERRUPTED, error_text, exit_code, talk_console

_SHOWN_ROWS = 20


def guarded(action: Callable[[], int]) -> int:
    """Run a command; returns its exit code. Only with log.level=debug does a traceback follow."""
    try:
        return action()
    except LoractlError as error:
        if isinstance(error, BadRows):
            _show_bad_rows(error)
        if isinstance(error, StartFailed):
            _say(_without_last_words(error))
        else:
            _say(error.message)
        return exit_code(error)
    except KeyboardInterrupt:
        talk_console().print("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED  # whoever read our output has left, and needs no words about it
    except Exception as error:  # noqa: BLE001  # a person reads one line, whatever our bug was
        _say(
            f"internal: {type(error).__name__}: {error}; this is a bug of loractl, "
            "LORACTL_LOG__LEVEL=debug shows where"
        )
        return EXIT_FAILED


def _show_bad_rows(error: BadRows) -> None:
    console = talk_console()
    for row in error.rows[:_SHOWN_ROWS]:
        console.print(f"{error.file}:{row.line}: {row.reason}")
    if len(error.rows) > _SHOWN_ROWS:
        console.print(f"… and {len(error.rows) - _SHOWN_ROWS} more")


def _without_last_words(error: StartFailed) -> str:
    """What a process said before it died comes first, then the one line that is the error."""
    line, _, said = error.message.partition("\n")
    if said:
        talk_console().print(said)
    return line


def _say(message: str) -> None:
    console = talk_console()
    if _debugging():
        console.print(traceback.format_exc().rstrip())
    console.print(error_text(message))


def _debugging() -> bool:
    try:
        return load_config().log.level == "debug"
    except LoractlError:
        return False
