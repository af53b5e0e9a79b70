"""`python -m loractl.daemon --config FILE`: the daemon in this process, until it is told to stop."""

import argparse
import sys
from pathlib import Path

from ..bus.config import Config, config_from_json
from ..bus.errors import InvalidConfig, LoractlError
from .launch import run_foreground

USER_ERROR = 2
START_FAILED = 3


def main() -> int:
    """Returns 0 after a clean stop, 2 for the caller's mistake, 3 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m loractl.daemon")
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration as JSON; - is stdin")
    arguments = parser.parse_args()
    try:
        return run_foreground(_read(arguments.config))
    except LoractlError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return USER_ERROR if error.fault == "user" else START_FAILED


def _read(file: str) -> Config:
    try:
        return config_from_json(sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read the configuration {file}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
