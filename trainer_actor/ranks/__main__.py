"""`python -m loractl.trainer_actor.ranks --channel FD`: another rank's process. Rank 0 starts it, and it ends with it."""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import structlog

from ...bus.config import Config, config_from_json
from ...bus.errors import LoractlError
from ...bus.lasting_imports import lasting_imports
from ...bus.layout import StateLayout
from ...bus.logs import configure_logs
from ..absent_libraries import silence_absent_libraries
from .channel import Channel
from .frames import Begin, Failed, FromRank, Here, Ready, ToRank

log = structlog.get_logger()


def main() -> int:
    """Returns 0 when rank 0 is gone, 1 after a bug."""
    parser = argparse.ArgumentParser(prog="python -m loractl.trainer_actor.ranks")
    parser.add_argument(
        "--channel", required=True, type=int, metavar="FD", help="a socket that leads to rank 0"
    )
    link = socket.socket(fileno=parser.parse_args().channel)
    channel: Channel[FromRank, ToRank] = Channel(link, msgspec.msgpack.Decoder(ToRank))
    # What is sent to all processes of a terminal, or of a service, is rank 0's to obey.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        begin = channel.receive()
        assert isinstance(begin, Begin)
        config = config_from_json(begin.config)
        if config.state_dir:
            _log_beside_the_trainers(config, begin.rank)
        channel.watch(lambda: os._exit(0))
        _serve(config, begin, channel)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception:
        log.exception("rank.crashed")
        return 1
    return 0


def _log_beside_the_trainers(config: Config, rank: int) -> None:
    configure_logs(config.log, f"trainer-rank-{rank}", StateLayout(Path(config.state_dir)).logs)


def _serve(config: Config, begin: Begin, channel: Channel[FromRank, ToRank]) -> None:
    silence_absent_libraries()
    # Here, not above: torch reads its settings when it is imported, and this takes seconds.
    with lasting_imports():
        from .serving import Rank

    channel.send(Here())
    try:
        rank = Rank(config, begin.rank, Path(begin.meeting), channel)
    except LoractlError as error:
        log.error("rank.not_started", reason=error.message)  # noqa: TRY400  # a reason, not a bug
        channel.send(Failed(error.message))
        channel.receive()
    else:
        channel.send(Ready())
        rank.serve()


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # unloading torch would take a second
