"""The bus's no-op round trip: client -> broker -> echo actor -> broker -> client.

Beside it, in the same run and in alternating rounds, a bare pyzmq relay: the same clients and the
same echo peer, and between them a ROUTER and a DEALER that forward frames without reading them, with
recv_multipart and send_multipart. "lean relay" is the same with the broker's own, faster way to move
frames: what it costs less than the broker is what the broker does for a request (read the header,
remember it and its outcome, choose an actor, keep count). The middle's CPU is user and system time of
that one process, its I/O thread included.

    python bench/bus.py [--quick] [--json]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, config_from_json, load_config
from loractl.bus.identities import unsolicited, work_identity
from loractl.bus.ids import LOCAL_TENANT, ActorId, new_request_id
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ActorReady, Echo, Echoed, Envelope
from loractl.client.interrupts import interrupt_when_ended
from loractl.daemon.launch import run_foreground
from loractl.daemon.supervisor import ActorCommand

PAYLOAD = np.zeros(100, np.uint8)
CLIENTS = (1, 16, 64)
TARGET = 1.5
WAYS = ("broker", "relay", "lean relay")
PATIENCE_MS = 30_000


@dataclass(frozen=True)
class Result:
    """One way at one number of clients; each of them has one request under way at any time."""

    way: str
    clients: int
    p50_us: float
    p99_us: float
    requests_per_s: float
    broker_cpu_us: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="results as JSON, on stdout")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--role", choices=[*WAYS, "echo"], help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is None:
        interrupt_when_ended()
        report(measure(quick=arguments.quick), as_json=arguments.json)
        return
    config = config_from_json(arguments.config.read_text())
    match arguments.role:
        case "broker":
            serve_broker(config, arguments.config)
        case "relay":
            serve_relay(config, forward_plainly)
        case "lean relay":
            serve_relay(config, forward_leanly)
        case "echo":
            serve_echo(config, arguments.prefix)


# --- the processes -------------------------------------------------------------------------------


def serve_broker(config: Config, file: Path) -> None:
    """The real daemon, whose only actor is the echo peer in the trainer's place."""
    argv = [sys.executable, __file__, "--role", "echo", "--config", str(file)]
    run_foreground(config, commands=[ActorCommand(actor=ActorId("trainer"), role="trainer", argv=argv)])


def serve_relay(config: Config, forward: Callable[[sockets.PlainSocket, sockets.PlainSocket], None]) -> None:
    layout = StateLayout(Path(config.state_dir))
    context = sockets.new_context()
    front = sockets.bind_router(context, layout.client_socket, config.limits)
    back = context.socket(zmq.DEALER)
    back.set_hwm(0)
    back.bind(layout.actor_socket)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        for ready, _ in poller.poll():
            forward(ready, back if ready is front else front)


def forward_plainly(source: sockets.PlainSocket, target: sockets.PlainSocket) -> None:
    while True:
        try:
            frames = source.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        target.send_multipart(frames)


def forward_leanly(source: sockets.PlainSocket, target: sockets.PlainSocket) -> None:
    for frames in sockets.receive_waiting(source):
        sockets.send(target, frames, copy=False)


def serve_echo(config: Config, prefix: int) -> None:
    """Answer every Echo. prefix: frames before each message, which the relay needs for its way back."""
    context = sockets.new_context()
    address = StateLayout(Path(config.state_dir)).actor_socket
    socket = sockets.connect_dealer(context, address, config.limits, identity=work_identity("trainer"))
    if not prefix:
        ready = ActorReady(actor="trainer", role="trainer", pid=os.getpid(), details="")
        socket.send_multipart(encode(unsolicited(ready)))
    while True:
        frames = socket.recv_multipart()
        asked = decode(frames[prefix:], config.limits)
        if isinstance(asked.body, Echo):
            answer = Envelope(
                request=asked.request, tenant=asked.tenant, body=Echoed(payload=asked.body.payload)
            )
            socket.send_multipart([*frames[:prefix], *encode(answer)])


@contextmanager
def running(way: str) -> Iterator[tuple[Config, psutil.Process]]:
    """Start one way through; gives its config and the process in the middle."""
    # The echo peer sends no heartbeats, so that nothing but requests is measured.
    settings = ["daemon.heartbeat_timeout_s=3600", "daemon.stop_timeout_s=1"]
    directory = Path(tempfile.mkdtemp(prefix="lo"))
    config = load_config(state_dir=str(directory), environ={}, overrides=settings)
    (directory / "run").mkdir(mode=0o700)
    file = directory / "bench.json"
    file.write_text(config.to_json())
    roles = [["--role", way]] if way == "broker" else [["--role", way], ["--role", "echo", "--prefix", "1"]]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *role, "--config", str(file)],
            stderr=subprocess.DEVNULL,
            # As the daemon starts its actors: the system shares time between sessions, then processes.
            start_new_session="echo" in role,
        )
        for role in roles
    ]
    try:
        yield config, psutil.Process(processes[0].pid)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        shutil.rmtree(directory)


# --- the clients ---------------------------------------------------------------------------------


class Clients:
    """Some sockets in one thread, each of which sends its next request when it has its answer."""

    def __init__(self, config: Config, count: int) -> None:
        self._config = config
        self._context = sockets.new_context()
        address = StateLayout(Path(config.state_dir)).client_socket
        self._sockets = [sockets.connect_dealer(self._context, address, config.limits) for _ in range(count)]
        self._poller = zmq.Poller()
        for socket in self._sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._sent_at: dict[sockets.PlainSocket, float] = {}

    def run(self, requests: int) -> list[float]:
        """Make so many requests; returns how long each took, in seconds."""
        latencies: list[float] = []
        waiting = left = requests
        for socket in self._sockets[:requests]:
            self._ask(socket)
            left -= 1
        while waiting:
            ready = self._poller.poll(PATIENCE_MS)
            assert ready, "no answer"
            for socket, _ in ready:
                answer = decode(socket.recv_multipart(), self._config.limits)
                if not answer.last:  # the echo peer is still starting
                    continue
                assert isinstance(answer.body, Echoed), answer
                latencies.append(time.perf_counter() - self._sent_at[socket])
                waiting -= 1
                if left:
                    self._ask(socket)
                    left -= 1
        return latencies

    def close(self) -> None:
        sockets.close(self._context, *self._sockets)

    def _ask(self, socket: sockets.PlainSocket) -> None:
        self._sent_at[socket] = time.perf_counter()
        asked = Envelope(request=new_request_id(), tenant=LOCAL_TENANT, body=Echo(payload=PAYLOAD))
        socket.send_multipart(encode(asked))


def measure(*, quick: bool) -> list[Result]:
    """Alternate between the ways, round by round; the median of the rounds counts."""
    rounds, requests = (1, 200) if quick else (7, 3000)
    results = []
    with ExitStack() as stack:
        ways = {way: stack.enter_context(running(way)) for way in WAYS}
        for clients in CLIENTS:
            seen: dict[str, list[Result]] = {way: [] for way in ways}
            drivers = {way: Clients(config, clients) for way, (config, _) in ways.items()}
            for driver in drivers.values():
                driver.run(max(50, requests // 10))  # connect, warm up
            for _ in range(rounds):
                for way, (_, process) in ways.items():
                    seen[way].append(one_round(way, drivers[way], process, clients, requests))
            for driver in drivers.values():
                driver.close()
            results += [median(each) for each in seen.values()]
    return results


def one_round(way: str, driver: Clients, process: psutil.Process, clients: int, requests: int) -> Result:
    cpu_before, started = process.cpu_times(), time.perf_counter()
    latencies = np.array(driver.run(requests))
    took_s, cpu = time.perf_counter() - started, process.cpu_times()
    cpu_s = cpu.user + cpu.system - cpu_before.user - cpu_before.system
    return Result(
        way=way,
        clients=clients,
        p50_us=1e6 * float(np.percentile(latencies, 50)),
        p99_us=1e6 * float(np.percentile(latencies, 99)),
        requests_per_s=requests / took_s,
        broker_cpu_us=1e6 * cpu_s / requests,
    )


def median(rounds: Sequence[Result]) -> Result:
    def of(name: str) -> float:
        return statistics.median(getattr(each, name) for each in rounds)

    return Result(
        way=rounds[0].way,
        clients=rounds[0].clients,
        p50_us=of("p50_us"),
        p99_us=of("p99_us"),
        requests_per_s=of("requests_per_s"),
        broker_cpu_us=of("broker_cpu_us"),
    )


# --- the report ----------------------------------------------------------------------------------


def report(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print("clients  way          p50 us   p99 us   requests/s   middle's CPU us/request")
    for each in results:
        print(
            f"{each.clients:7}  {each.way:10} {each.p50_us:8.0f} {each.p99_us:8.0f} "
            f"{each.requests_per_s:12.0f}   {each.broker_cpu_us:7.1f}"
        )
    print(f"\nbroker / relay (target: at most {TARGET})")
    for ours, bare, _ in zip(*[iter(results)] * len(WAYS), strict=True):
        print(
            f"{ours.clients:7}  {'':10} {ours.p50_us / bare.p50_us:8.2f} {ours.p99_us / bare.p99_us:8.2f} "
            f"{ours.requests_per_s / bare.requests_per_s:12.2f}   {ours.broker_cpu_us / bare.broker_cpu_us:7.2f}"
        )


if __name__ == "__main__":
    main()
