"""`python -m loractl.tinker_bridge --config FILE --actor NAME`: the HTTP bridge's process."""

import argparse
import asyncio
import sys
from pathlib import Path

import structlog

from ..bus.config import config_from_json
from ..bus.errors import LoractlError
from ..bus.layout import StateLayout
from ..bus.logs import configure_logs
from .server import run_bridge
from .two_lines import TwoLines

# The address cannot be served or the daemon is not there: trying again changes nothing.
CANNOT_START = 3

log = structlog.get_logger()


def main() -> int:
    """Returns 0 after a clean stop, 1 after a bug, 3 when the bridge cannot start."""
    parser = argparse.ArgumentParser(prog="python -m loractl.tinker_bridge")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="as the daemon wrote it")
    parser.add_argument("--actor", default="bridge", metavar="NAME")
    arguments = parser.parse_args()
    try:
        config = config_from_json(arguments.config.read_text(encoding="utf-8"))
        configure_logs(config.log, arguments.actor, StateLayout(Path(config.state_dir)).logs)
        lines = TwoLines()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lines)) as runner:
            runner.run(run_bridge(config, arguments.actor, lines))
    except (LoractlError, OSError) as error:
        message = error.message if isinstance(error, LoractlError) else str(error)
        log.error("bridge.not_started", reason=message)  # noqa: TRY400  # a reason, not a bug
        sys.stderr.write(f"{arguments.actor} cannot start: {message}\n")
        return CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
