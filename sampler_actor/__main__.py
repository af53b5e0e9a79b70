"""`python -m loractl.sampler_actor --config FILE --actor NAME`: one sampler's process.

vLLM starts its engine process by importing this module again, so the work is behind the guard below.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

import psutil
import structlog

from ..bus.config import Config, config_from_json, set_process_environment
from ..bus.errors import LoractlError
from ..bus.giving_way import give_way
from ..bus.lasting_imports import lasting_imports
from ..bus.layout import StateLayout
from ..bus.logs import configure_logs
from .environment import thread_environment

# The base model or an engine cannot be loaded, or the daemon is not there.
CANNOT_SERVE = 3

log = structlog.get_logger()


def main() -> int:
    """Returns 0 after a clean stop, 1 after a bug, 3 when the sampler cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m loractl.sampler_actor")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="as the daemon wrote it")
    parser.add_argument("--actor", default="sampler-0", metavar="NAME")
    arguments = parser.parse_args()
    try:
        config = config_from_json(arguments.config.read_text(encoding="utf-8"))
        configure_logs(config.log, arguments.actor, StateLayout(Path(config.state_dir)).logs)
        _serve(config, arguments.actor)
    except (LoractlError, OSError) as error:
        message = error.message if isinstance(error, LoractlError) else str(error)
        log.error("sampler.gave_up", reason=message)  # noqa: TRY400  # a reason, not a bug
        sys.stderr.write(f"{arguments.actor} cannot serve: {message}\n")
        return CANNOT_SERVE
    except Exception:  # the process's boundary: `_leave` has to run whatever happened
        log.exception("sampler.crashed")
        return 1
    return 0


def _serve(config: Config, actor: str) -> None:
    set_process_environment(thread_environment(config.sampler.threads))
    give_way(config.daemon.niceness)
    # Here, not above: torch and the tokenizer read the environment when they are imported.
    with lasting_imports():
        from .actor import run_sampler

    # Not asyncio.run, whose end waits for threads: a stop does not wait for an engine that is starting.
    asyncio.Runner().run(run_sampler(config, actor))


def _leave(code: int) -> None:
    """Exit at once, with no engine process left behind.

    Not through the interpreter's shutdown, in which vLLM raises from destructors.
    """
    for child in psutil.Process().children(recursive=True):
        # One may end with its own parent, killed a moment ago.
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
