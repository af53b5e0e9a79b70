"""`python -m loractl.daemon --config FILE`: the daemon in this process, until it is told to stop."""

import argparse
import sys
from pathlib import Path

from ..bus.config import config_from_json
from ..bus.errors import LoractlError
from .launch import EXIT_START_FAILED, EXIT_USER_ERROR, run_foreground


def main() -> int:
    """Returns 0 after a clean stop, 2 for the caller's mistake, 3 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m loractl.daemon")
    parser.add_argument("--config", required=True, metavar="FILE", help="a configuration as JSON; - is stdin")
    arguments = parser.parse_args()
    try:
        text = sys.stdin.read() if arguments.config == "-" else Path(arguments.config).read_text()
        return run_foreground(config_from_json(text))
    except (LoractlError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        user = isinstance(error, LoractlError) and error.fault == "user"
        return EXIT_USER_ERROR if user else EXIT_START_FAILED


if __name__ == "__main__":
    sys.exit(main())
