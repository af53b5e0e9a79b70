"""What measurements of the broker share: clients that ask again and again, rounds in turns, and their medians."""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config
from loractl.bus.ids import LOCAL_TENANT, new_request_id
from loractl.bus.layout import StateLayout
from loractl.bus.messages import Envelope, Message

CLIENTS = (1, 16, 64)
PATIENCE_MS = 60_000

ResultT = TypeVar("ResultT")


@contextmanager
def undisturbed() -> Iterator[None]:
    """What starts in here is known to whoever ends it: Ctrl-C and SIGTERM count at the end of the block."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


class Clients:
    """Some sockets in one thread. Every client has one request under way at any time."""

    def __init__(self, config: Config, count: int) -> None:
        self._config = config
        self._context = sockets.new_context()
        address = StateLayout(Path(config.state_dir)).client_socket
        self._sockets = [sockets.connect_dealer(self._context, address, config.limits) for _ in range(count)]
        self._numbers = {socket: number for number, socket in enumerate(self._sockets)}
        self._poller = zmq.Poller()
        for socket in self._sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._sent_at: dict[sockets.PlainSocket, float] = {}

    def each(self, body: Callable[[int], Message]) -> list[Message]:
        """The answers to one request of every client, one after another. body: of a client's, by its number."""
        return [self._answer_to(socket, body) for socket in self._sockets]

    def run(self, requests: int, body: Callable[[int], Message], answer: type[Message]) -> list[float]:
        """Make so many requests; returns how long each took, in seconds."""
        latencies: list[float] = []
        waiting = left = requests
        for socket in self._sockets[:requests]:
            self._ask(socket, body)
            left -= 1
        while waiting:
            ready = self._poller.poll(PATIENCE_MS)
            assert ready, "no answer"
            for socket, _ in ready:
                answered = decode(socket.recv_multipart(), self._config.limits)
                if not answered.last:  # who answers is still starting
                    continue
                assert isinstance(answered.body, answer), answered
                latencies.append(time.perf_counter() - self._sent_at[socket])
                waiting -= 1
                if left:
                    self._ask(socket, body)
                    left -= 1
        return latencies

    def close(self) -> None:
        sockets.close(self._context, *self._sockets)

    def _answer_to(self, socket: sockets.PlainSocket, body: Callable[[int], Message]) -> Message:
        self._ask(socket, body)
        assert socket.poll(PATIENCE_MS), "no answer"
        while not (answered := decode(socket.recv_multipart(), self._config.limits)).last:
            pass  # as above
        return answered.body

    def _ask(self, socket: sockets.PlainSocket, body: Callable[[int], Message]) -> None:
        self._sent_at[socket] = time.perf_counter()
        asked = Envelope(request=new_request_id(), tenant=LOCAL_TENANT, body=body(self._numbers[socket]))
        socket.send_multipart(encode(asked))


def percentiles(latencies_s: Sequence[float], *, per_s: float) -> tuple[float, float]:
    """The 50th and the 99th, in units of which a second has so many."""
    low, high = np.percentile(latencies_s, (50, 99))
    return per_s * float(low), per_s * float(high)


def median(rounds: Sequence[ResultT]) -> ResultT:
    """Of every figure; what else a result says is the same in all rounds."""
    first: Any = rounds[0]
    figures = [each.name for each in fields(first) if isinstance(getattr(first, each.name), float)]
    return replace(
        first, **{name: statistics.median(getattr(each, name) for each in rounds) for name in figures}
    )


def arguments_of(words: str | None, *, quick: str) -> argparse.ArgumentParser:
    """words: of the program itself. quick: what --quick does."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="results as JSON, on stdout")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    return parser


def print_json(results: Sequence[Any]) -> None:
    print(json.dumps([asdict(result) for result in results], indent=1))
