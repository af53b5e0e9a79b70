"""A journal that is written no more ends the daemon, aloud: nobody would ever be told anything again."""

import socket
import time
from pathlib import Path

import pytest
from loractl.bus.config import Config
from loractl.bus.errors import StorageFailed
from loractl.bus.layout import StateLayout
from loractl.daemon.broker import Broker
from loractl.daemon.loop import Loop
from loractl.daemon.status import Identity
from loractl.daemon.supervisor import Supervisor


class EndedJournal:
    """Its thread has ended, and said so."""

    ended = True

    def __init__(self) -> None:
        self.woken, self.waker = socket.socketpair()
        self.waker.send(b"\0")
        self.closed = False

    def take_done(self) -> list[object]:
        return []

    def close(self) -> None:
        self.closed = True


def test_the_daemon_stops_when_the_journals_thread_has_ended(config: Config):
    layout, journal = StateLayout(Path(config.state_dir)), EndedJournal()
    layout.run.mkdir(mode=0o700)
    identity = Identity(version="1", pid=1, started=time.monotonic(), chaos=None)
    loop = Loop(config, Broker(config, {}, identity), Supervisor(config, []), journal=journal)

    with pytest.raises(StorageFailed, match="the journal is written no more") as told:
        loop.run()

    assert str(layout.logs / "daemon.log") in told.value.message
    assert journal.closed
