"""A daemon that does what a test says: real sockets, scripted answers."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Queue

import pytest
import zmq
from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, load_config
from loractl.bus.identities import unsolicited
from loractl.bus.layout import StateLayout
from loractl.bus.messages import Envelope, Message

Script = Callable[[Envelope], Sequence[Envelope]]


class ScriptedDaemon:
    """Binds one ROUTER (and a publisher) and answers each message with what `script` returns.

    `seen` holds every (identity, envelope) that came, in order.
    """

    def __init__(self, layout: StateLayout, address: str, script: Script) -> None:
        self.script = script
        self.seen: Queue[tuple[bytes, Envelope]] = Queue()
        self.limits = Config().limits
        self._layout = layout
        self._orders: Queue[Callable[[], None]] = Queue()
        self._context = sockets.new_context()
        layout.run.mkdir(parents=True, exist_ok=True)
        self._router = sockets.bind_router(self._context, address, self.limits, handover=True)
        self._publisher = sockets.bind_publisher(self._context, layout.event_socket, self.limits)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, identity: bytes, *envelopes: Envelope) -> None:
        for envelope in envelopes:
            self.send_frames(identity, encode(envelope))

    def send_frames(self, identity: bytes, frames: list[bytes]) -> None:
        self._orders.put(lambda: self._router.send_multipart([identity, *frames]))

    def publish(self, event: Message) -> None:
        self._orders.put(lambda: self._publisher.send_multipart(encode(unsolicited(event))))

    def next(self, timeout_s: float = 60.0) -> tuple[bytes, Envelope]:
        return self.seen.get(timeout=timeout_s)

    def wait_for(self, kind: type[Message], timeout_s: float = 60.0) -> tuple[bytes, Envelope]:
        while True:
            identity, envelope = self.next(timeout_s)
            if isinstance(envelope.body, kind):
                return identity, envelope

    def stop(self) -> None:
        """End as a daemon does: its sockets vanish."""
        if self._thread.is_alive():
            self._stopping.set()
            self._thread.join()
            sockets.close(self._context, self._router, self._publisher)
            for file in self._layout.run.glob("*.sock"):
                file.unlink()

    def _run(self) -> None:
        while not self._stopping.is_set():
            while not self._orders.empty():
                self._orders.get()()
            if not self._router.poll(5):
                continue
            for identity, *frames in sockets.receive_waiting(self._router):
                envelope = decode(frames, self.limits)
                self.seen.put((bytes(identity), envelope))
                for answer in self.script(envelope):
                    try:
                        self._router.send_multipart([identity, *encode(answer)])
                    except zmq.ZMQError:  # the peer has left
                        break


@pytest.fixture
def state_dir() -> Iterator[Path]:
    # Short, because a socket's path may have about 100 bytes.
    path = Path(tempfile.mkdtemp(prefix="lo"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def config(state_dir: Path) -> Config:
    return load_config(state_dir=str(state_dir), environ={}, overrides=["daemon.heartbeat_s=0.05"])


@pytest.fixture
def layout(state_dir: Path) -> StateLayout:
    return StateLayout(state_dir)


@pytest.fixture
def daemon(layout: StateLayout) -> Iterator[Callable[[str, Script], ScriptedDaemon]]:
    """Start one on an address; all are stopped at the end."""
    started: list[ScriptedDaemon] = []

    def start(address: str, script: Script = lambda envelope: []) -> ScriptedDaemon:
        started.append(ScriptedDaemon(layout, address, script))
        return started[-1]

    yield start
    for each in started:
        each.stop()
