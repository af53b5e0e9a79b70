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
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import zmq
from rounds import CLIENTS, Clients, arguments_of, median, percentiles, print_json, undisturbed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, config_from_json, load_config
from loractl.bus.identities import unsolicited, work_identity
from loractl.bus.ids import ActorId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ActorReady, Echo, Echoed, Envelope, Message
from loractl.client.interrupts import interrupt_when_ended
from loractl.daemon.launch import run_foreground
from loractl.daemon.supervisor import ActorCommand

PAYLOAD = np.zeros(100, np.uint8)
TARGET = 1.5
WAYS = ("broker", "relay", "lean relay")


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
    parser = arguments_of(__doc__, quick="a few seconds, to see that it runs")
    parser.add_argument("--role", choices=[*WAYS, "echo"], help=argparse.SUPPRESS)
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
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for role in roles:
            # As the daemon starts its actors: the system shares time between sessions, then processes.
            own_session = "echo" in role
            argv = [sys.executable, __file__, *role, "--config", str(file)]
            with undisturbed():
                processes.append(
                    subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=own_session)
                )
        yield config, psutil.Process(processes[0].pid)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        shutil.rmtree(directory)


# --- measuring -----------------------------------------------------------------------------------


def echo(_number: int) -> Message:
    return Echo(payload=PAYLOAD)


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
                driver.run(max(50, requests // 10), echo, Echoed)  # connect, warm up
            for _ in range(rounds):
                for way, (_, process) in ways.items():
                    seen[way].append(one_round(way, drivers[way], process, clients, requests))
            for driver in drivers.values():
                driver.close()
            results += [median(each) for each in seen.values()]
    return results


def one_round(way: str, driver: Clients, process: psutil.Process, clients: int, requests: int) -> Result:
    cpu_before, started = process.cpu_times(), time.perf_counter()
    latencies = driver.run(requests, echo, Echoed)
    took_s, cpu = time.perf_counter() - started, process.cpu_times()
    cpu_s = cpu.user + cpu.system - cpu_before.user - cpu_before.system
    p50_us, p99_us = percentiles(latencies, per_s=1e6)
    return Result(
        way=way,
        clients=clients,
        p50_us=p50_us,
        p99_us=p99_us,
        requests_per_s=requests / took_s,
        broker_cpu_us=1e6 * cpu_s / requests,
    )


# --- the report ----------------------------------------------------------------------------------


def report(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        print_json(results)
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
