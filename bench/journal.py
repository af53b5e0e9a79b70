"""What durability costs: acknowledged operations a second, and how long each takes.

    python bench/journal.py [--quick] [--json] [--celery]

An operation is an OptimStep: client -> broker -> trainer -> broker -> client, and the trainer answers at once.
With the journal, the broker forwards it once it is on the disk, and tells its outcome once that is. Beside
it the same broker with `journal.enabled=false`, in the same run and in alternating rounds; the difference of
their medians is what durability adds. Every client has one operation under way at any time.

--celery: a no-op task of Celery over Redis in turn with them, with `appendonly yes` and `appendfsync always`,
so that it too has on the disk what it says it has. Takes a `redis-server` on the PATH; Celery is installed into
a virtual environment that goes when the program ends.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery_redis import POOLS, NotAvailable, Round, celery_with_redis
from rounds import CLIENTS, Clients, arguments_of, median, percentiles, print_json, undisturbed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loractl.bus import sockets
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, config_from_json, load_config
from loractl.bus.identities import unsolicited, work_identity
from loractl.bus.ids import ActorId, AdapterId, LaneId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorReady,
    AdapterCreated,
    AdapterDetails,
    CreateAdapter,
    Envelope,
    LoraSpec,
    Message,
    OptimStep,
    Recovered,
    StepResult,
)
from loractl.client.interrupts import interrupt_when_ended
from loractl.daemon.launch import run_foreground
from loractl.daemon.supervisor import ActorCommand

LORA = LoraSpec(rank=8, alpha=16.0, seed=0)
TARGET_ADDED_MS, TARGET_TIMES_CELERY = 5.0, 10.0
SETTINGS = {"journal": [], "no journal": ["journal.enabled=false"]}


@dataclass(frozen=True)
class Result:
    """One way at one number of clients."""

    way: str
    clients: int
    p50_ms: float
    p99_ms: float
    operations_per_s: float


def main() -> None:
    parser = arguments_of(__doc__, quick="about a minute")
    parser.add_argument("--celery", action="store_true", help="Celery with Redis beside it")
    parser.add_argument("--role", choices=["broker", "trainer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is not None:
        config = config_from_json(arguments.config.read_text())
        serve_broker(config, arguments.config) if arguments.role == "broker" else serve_trainer(config)
        return
    interrupt_when_ended()
    report(measure(quick=arguments.quick, with_celery=arguments.celery), as_json=arguments.json)


# --- our processes -------------------------------------------------------------------------------


def serve_broker(config: Config, file: Path) -> None:
    argv = [sys.executable, __file__, "--role", "trainer", "--config", str(file)]
    run_foreground(config, commands=[ActorCommand(actor=ActorId("trainer"), role="trainer", argv=argv)])


def serve_trainer(config: Config) -> None:
    """Answer every request at once. No heartbeats, so that nothing but requests is measured."""
    context = sockets.new_context()
    address = StateLayout(Path(config.state_dir)).actor_socket
    socket = sockets.connect_dealer(context, address, config.limits, identity=work_identity("trainer"))
    ready = ActorReady(actor="trainer", role="trainer", pid=os.getpid(), details="")
    socket.send_multipart(encode(unsolicited(ready)))
    while True:
        asked = decode(socket.recv_multipart(), config.limits)
        if (body := answer(asked)) is not None:
            socket.send_multipart(encode(Envelope(request=asked.request, tenant=asked.tenant, body=body)))


def answer(asked: Envelope) -> Message | None:
    match asked.body:
        case OptimStep(seq=seq, learning_rate=rate):
            return StepResult(applied=True, step=seq, grad_norm=0.0, learning_rate=rate, tokens=0)
        case CreateAdapter(adapter=adapter, lane=lane, name=name, lora=lora):
            # Without a journal the broker gives no ids.
            adapter, lane = adapter or AdapterId(f"ad-{asked.request}"), lane or LaneId(f"ln-{asked.request}")
            return AdapterCreated(details=details(adapter, asked, name, lora), lane=lane)
        case other:
            return Recovered(step=0) if other.kind == "recover_adapter" else None


def details(adapter: AdapterId, asked: Envelope, name: str, lora: LoraSpec) -> AdapterDetails:
    return AdapterDetails(
        adapter=adapter,
        tenant=asked.tenant,
        name=name,
        lora=lora,
        step=0,
        version=0,
        checkpoint_step=-1,
        parameters=0,
        state_bytes=0,
        created_unix_s=0.0,
    )


class Steps:
    """Clients that step, each an adapter of its own."""

    def __init__(self, config: Config, count: int) -> None:
        self._clients = Clients(config, count)
        self._lanes: list[tuple[AdapterId, LaneId, int]] = []
        for created in self._clients.each(lambda number: CreateAdapter(name=f"bench-{number}", lora=LORA)):
            assert isinstance(created, AdapterCreated), created
            self._lanes.append((created.details.adapter, created.lane, 0))

    def run(self, requests: int) -> tuple[float, list[float]]:
        began = time.perf_counter()
        latencies = self._clients.run(requests, self._next, StepResult)
        return time.perf_counter() - began, latencies

    def close(self) -> None:
        self._clients.close()

    def _next(self, number: int) -> Message:
        adapter, lane, seq = self._lanes[number]
        self._lanes[number] = (adapter, lane, seq + 1)
        return OptimStep(adapter=adapter, lane=lane, seq=seq + 1, learning_rate=0.1)


@contextmanager
def broker(way: str) -> Iterator[Round]:
    settings = ["daemon.heartbeat_timeout_s=3600", "daemon.stop_timeout_s=1", *SETTINGS[way]]
    directory = Path(tempfile.mkdtemp(prefix="lo"))
    config = load_config(state_dir=str(directory), environ={}, overrides=settings)
    file = directory / "bench.json"
    file.write_text(config.to_json())
    (directory / "run").mkdir(mode=0o700)
    argv = [sys.executable, __file__, "--role", "broker", "--config", str(file)]
    processes: list[subprocess.Popen[bytes]] = []
    clients: dict[int, Steps] = {}

    def run(count: int, requests: int) -> tuple[float, Sequence[float]]:
        if count not in clients:
            clients[count] = Steps(config, count)
        return clients[count].run(requests)

    try:
        with undisturbed():
            processes.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
        yield run
    finally:
        for each in clients.values():
            each.close()
        for process in processes:
            process.terminate()
            process.wait()
        shutil.rmtree(directory)


# --- measuring -----------------------------------------------------------------------------------


def measure(*, quick: bool, with_celery: bool) -> list[Result]:
    """Alternate between the ways, round by round; the median of the rounds counts."""
    rounds, seconds = (3, 1.0) if quick else (7, 2.0)
    results = []
    with ExitStack() as stack:
        ways: dict[str, Round] = {way: stack.enter_context(broker(way)) for way in SETTINGS}
        if with_celery:
            try:
                ways |= stack.enter_context(celery_with_redis())
            except NotAvailable as reason:
                print(f"Celery is left out: {reason}", file=sys.stderr)
        for clients in CLIENTS:
            requests = {way: warm_up(run, clients, seconds) for way, run in ways.items()}
            seen: dict[str, list[Result]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, run in ways.items():
                    seen[way].append(one_round(way, run, clients, requests[way]))
            results += [median(each) for each in seen.values()]
    return results


def warm_up(run: Round, clients: int, seconds: float) -> int:
    """How many requests take about so long."""
    run(clients, 2 * clients)
    took_s, _ = run(clients, 6 * clients)
    return max(1, round(6 * seconds / took_s)) * clients


def one_round(way: str, run: Round, clients: int, requests: int) -> Result:
    took_s, latencies = run(clients, requests)
    p50_ms, p99_ms = percentiles(latencies, per_s=1e3)
    return Result(
        way=way,
        clients=clients,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        operations_per_s=len(latencies) / took_s,
    )


# --- the report ----------------------------------------------------------------------------------


def report(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        print_json(results)
        return
    print("clients  way              p50 ms   p99 ms   operations/s")
    for each in results:
        print(
            f"{each.clients:7}  {each.way:15} {each.p50_ms:7.2f} {each.p99_ms:8.2f} {each.operations_per_s:14.0f}"
        )
    by_way = {(each.way, each.clients): each for each in results}
    print(f"\nclients  added p50 ms (target: under {TARGET_ADDED_MS:g})", end="")
    print(f"   times Celery's operations/s (target: at least {TARGET_TIMES_CELERY:g})")
    for clients in CLIENTS:
        with_it, without = by_way["journal", clients], by_way["no journal", clients]
        others = [by_way[way, clients].operations_per_s for way in POOLS if (way, clients) in by_way]
        times = f"{with_it.operations_per_s / max(others):.1f}" if others else "not measured"
        print(f"{clients:7}  {with_it.p50_ms - without.p50_ms:32.2f}   {times:>44}")


if __name__ == "__main__":
    main()
