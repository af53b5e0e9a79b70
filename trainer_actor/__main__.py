"""`python -m loractl.trainer_actor --config FILE --actor NAME`: the trainer's process.

Settings for libraries are made before any of them loads; then the link comes first, so that the
daemon sees a live process while the base model is still being read.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import structlog

from ..bus.actor_link import ActorLink
from ..bus.config import Config, config_from_json, set_process_environment
from ..bus.errors import InvalidConfig, LoractlError, StorageFailed
from ..bus.giving_way import give_way
from ..bus.lasting_imports import lasting_imports
from ..bus.layout import StateLayout
from ..bus.logs import configure_logs
from .absent_libraries import silence_absent_libraries
from .threads import threads_of

# The base model cannot be loaded or the daemon is not there: trying again changes nothing.
CANNOT_START = 3

log = structlog.get_logger()


def main() -> int:
    """Returns 0 after a clean stop, 1 after a bug or a failing disk, 3 when the trainer cannot start."""
    parser = argparse.ArgumentParser(prog="python -m loractl.trainer_actor")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="as the daemon wrote it")
    parser.add_argument("--actor", default="trainer", metavar="NAME")
    arguments = parser.parse_args()
    try:
        config = _read(arguments.config)
        configure_logs(config.log, arguments.actor, StateLayout(Path(config.state_dir)).logs)
        return _serve(config, arguments.actor)
    except LoractlError as error:
        log.error("trainer.not_started", reason=error.message)  # noqa: TRY400  # a reason, not a bug
        sys.stderr.write(f"{arguments.actor} cannot start: {error.message}\n")
        return 1 if isinstance(error, StorageFailed) else CANNOT_START  # a disk may come back


def _read(file: Path) -> Config:
    try:
        return config_from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read {file}: {error}") from error


def _serve(config: Config, actor: str) -> int:
    set_process_environment(
        {
            "OMP_NUM_THREADS": str(threads_of(config.trainer)),
            # Nothing here is compiled, and loading the compiler costs seconds.
            "TORCHDYNAMO_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )
    silence_absent_libraries()
    give_way(config.daemon.niceness)
    with ActorLink(config, actor, "trainer") as link:
        # Here, not above: torch reads its settings when it is imported.
        with lasting_imports():
            from .actor import TrainerActor
            from .engine import TrainEngine

        engine = TrainEngine.build(config)
        try:
            trainer = TrainerActor.build(config, link, engine)
            signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
            return trainer.run()
        finally:
            engine.close()


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is saved, sent and closed; unloading torch would take a second of the few that a stop has.
    os._exit(exit_status)
