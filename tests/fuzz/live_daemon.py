"""A real daemon with real sockets: floods of hostile frames from clients and from strangers on the actors' side.

After each case it answers a ping, and nothing in its log says that it hit a bug of ours.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import zmq
from loractl.bus.client import Client
from loractl.bus.codec import decode, peek
from loractl.bus.config import Config, load_config
from loractl.bus.errors import Internal
from loractl.bus.messages import Failed, Ping, Pong, Shutdown
from loractl.bus.sockets import connect_dealer, new_context
from loractl.tests.bus.one_of_each import corpus
from loractl.tests.daemon.conftest import SETTINGS
from loractl.tests.daemon.real_daemon import RealDaemon, actor_argv
from loractl.tests.fuzz.bus_frames import Frames, hostile
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import MIB, Play, Subject

_EPISODE = 250
_ANSWER_S = 30.0
_MAY_GROW = 64 * MIB
_STRANGERS = (b"", b"trainer-2", b"sampler-0", b"\xff\xfe", b"x" * 200)


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    config = load_config(state_dir=str(directory / "s"), environ={}, overrides=SETTINGS)
    actors = {"trainer": ("trainer", actor_argv(config, "echo_actor.py", "trainer"))}
    daemon = RealDaemon(config, actors)
    try:
        daemon.until(trainer="ready")
        stage = _Stage(config, daemon)
        yield stage.play
        stage.close()
    finally:
        daemon.close()


DAEMON = Subject(name="daemon", share=20, open=_open, episode=_EPISODE)


@dataclass
class _Stage:
    config: Config
    daemon: RealDaemon
    sockets: list["zmq.Socket[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = self.config.limits
        self._messages = [each for each in corpus() if peek(each[0], limits).kind != Shutdown.kind]
        self._context = new_context()
        self._sane = Client(self.config)
        self._process = psutil.Process(self.daemon.process.pid)
        self._ping()
        self._first_bytes = self._process.memory_info().rss
        self._from_client = self._connected(self.daemon.layout.client_socket)
        self._strangers = [self._connected(self.daemon.layout.actor_socket, each) for each in _STRANGERS]

    def play(self, source: Source) -> None:
        for _ in range(source.randint(1, 8)):
            frames = hostile(source, self._messages)
            asking = self._from_client if not source.one_in(3) else source.choice(self._strangers)
            _send(asking, frames)
        self._ping()
        self._hear()
        self._read_log()
        grown = self._process.memory_info().rss - self._first_bytes
        assert grown < _MAY_GROW, f"the daemon grew by {grown // MIB} MiB"

    def close(self) -> None:
        for each in self.sockets:
            each.close(0)
        self._context.term()
        self._sane.close()

    def _connected(self, address: str, identity: bytes = b"") -> "zmq.Socket[bytes]":
        made: Any = connect_dealer(self._context, address, self.config.limits, identity=identity)
        self.sockets.append(made)
        return made

    def _ping(self) -> None:
        began = time.monotonic()
        assert isinstance(self._sane.request(Ping(), timeout_s=_ANSWER_S), Pong)
        assert time.monotonic() - began < _ANSWER_S

    def _hear(self) -> None:
        """Answers that have come to what was sent; most was not worth one."""
        while self._from_client.poll(0):
            body = decode(self._from_client.recv_multipart(), self.config.limits).body
            assert not isinstance(body, Failed) or body.code != Internal.code, body

    def _read_log(self) -> None:
        for file in self.daemon.layout.logs.glob("daemon.*"):
            text = file.read_text(errors="replace")
            assert "hit_a_bug" not in text, text[text.index("hit_a_bug") - 200 :][:3000]
        assert self.daemon.process.poll() is None


def _send(socket: "zmq.Socket[bytes]", frames: Frames) -> None:
    if frames:
        socket.send_multipart(frames, flags=zmq.NOBLOCK)
