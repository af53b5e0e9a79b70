"""How long a crash takes: many adapters train, the trainer or the whole daemon is killed, until all go on.

    python bench/recovery.py [--adapters 32] [--seconds 30] [--quick] [--json]

The worst that settings allow: no snapshot is taken while the adapters train for `--seconds` without a pause,
which is the default of `journal.snapshot_s`, so that all of it runs again. Then once more with snapshots just
taken, so that nothing does. killed: the trainer, or every process of the daemon, with SIGKILL.

start       from the kill until a trainer is ready again
first, all  from the kill until the first adapter, and until the last, has answered a new operation
again       operations that ran again
The bound in words: start + reading the snapshots + at most as much training as there was since they were taken.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

import numpy as np
from loading.service import Service, served
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorStatus,
    AdapterCreated,
    CreateAdapter,
    DaemonStatus,
    ForwardBackward,
    GetStatus,
    LoraSpec,
    OptimStep,
)
from loractl.client.interrupts import interrupt_when_ended
from loractl.daemon import launch
from loractl.daemon.journal.reading import Reader
from loractl.daemon.journal.tables import Tables
from rich.console import Console
from rich.table import Table

_PATIENCE_S = 600.0
_POSITIONS = 256
_AHEAD = 4


@dataclass(frozen=True)
class Recovery:
    """trained_s: how long the adapters had trained since what the snapshots hold."""

    killed: str
    snapshots: bool
    adapters: int
    again: int
    trained_s: float
    start_s: float
    first_s: float
    all_s: float


@dataclass
class Trainee:
    adapter: AdapterId
    lane: LaneId
    seq: int = 0

    def step(self) -> tuple[ForwardBackward, OptimStep]:
        """A forward_backward over some positions, and a step."""
        random = np.random.default_rng(self.seq)
        tokens = random.integers(0, 250, _POSITIONS + 1)
        empty = np.zeros(0, np.float32)
        self.seq += 2
        place = {"adapter": self.adapter, "lane": self.lane}
        return (
            ForwardBackward(
                **place,
                seq=self.seq - 1,
                lengths=np.full(4, _POSITIONS // 4),
                tokens=tokens[:-1],
                targets=tokens[1:],
                weights=np.ones(_POSITIONS, np.float32),
                old_logprobs=empty,
                advantages=empty,
                loss="cross_entropy",
            ),
            OptimStep(**place, seq=self.seq, learning_rate=1e-3),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="smaller, to see that it runs")
    parser.add_argument("--json", action="store_true", help="results as JSON, on stdout")
    arguments = parser.parse_args()
    interrupt_when_ended()
    adapters, seconds = (4, 2.0) if arguments.quick else (arguments.adapters, arguments.seconds)
    cases = [(killed, snapshots) for snapshots in (False, True) for killed in ("the trainer", "the daemon")]
    found = [measure(killed, adapters, seconds, snapshots=snapshots) for killed, snapshots in cases]
    if arguments.json:
        print(json.dumps([asdict(each) for each in found]))
    else:
        show(found)


def measure(killed: str, adapters: int, seconds: float, *, snapshots: bool) -> Recovery:
    snapshot_s = 1.0 if snapshots else 3600.0
    with served(f"journal.snapshot_s={snapshot_s}", "daemon.restart_first_s=0.1") as service:
        with Client(service.config) as client:
            trainees = [create(client, number) for number in range(adapters)]
            trained_s = train(client, trainees, 2.0 if snapshots else seconds)
        until = time.monotonic() + _PATIENCE_S
        while snapshots and to_run_again(service.config):
            if time.monotonic() > until:
                sys.exit(f"snapshots do not hold everything after {_PATIENCE_S:g} s: see the trainer's log")
            time.sleep(0.2)
        again = to_run_again(service.config)
        began = time.monotonic()
        kill(service, killed)
        start_s = wait_until_ready(service.config, began, killed)
        with Client(service.config) as client:
            times = [at - began for at in go_on(client, trainees)]
    return Recovery(killed, snapshots, adapters, again, trained_s, start_s, min(times), max(times))


def create(client: Client, number: int) -> Trainee:
    lora = LoraSpec(rank=16, alpha=32.0, seed=number)
    created = client.request(CreateAdapter(name=f"a{number}", lora=lora), timeout_s=_PATIENCE_S)
    assert isinstance(created, AdapterCreated)
    return Trainee(created.details.adapter, created.lane)


def train(client: Client, trainees: Sequence[Trainee], seconds: float) -> float:
    """Each keeps some steps ahead, all the time. Returns how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        pending = [
            client.submit(body) for trainee in trainees for _ in range(_AHEAD) for body in trainee.step()
        ]
        for each in pending:
            each.result(_PATIENCE_S)
    return time.monotonic() - began


def to_run_again(config: Config) -> int:
    """Operations that no snapshot in the journal holds."""
    reader = Reader(Tables(StateLayout(Path(config.state_dir)).journal))
    try:
        return sum(len(reader.after(adapter)) for adapter in reader.adapters())
    finally:
        reader.close()


def kill(service: Service, killed: str) -> None:
    now = status(service.config)
    assert now is not None
    pids = [actor.pid for actor in now.actors if actor.role == "trainer"]
    if killed == "the daemon":
        pids = [now.pid, *(actor.pid for actor in now.actors)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def wait_until_ready(config: Config, began: float, killed: str) -> float:
    if killed == "the daemon":
        while launch.is_held(StateLayout(Path(config.state_dir))):
            time.sleep(0.01)
        launch.start_detached(config, _PATIENCE_S)
        return time.monotonic() - began
    while (actor := trainer(status(config))) is None or actor.restarts == 0 or actor.phase != "ready":
        time.sleep(0.02)
    return time.monotonic() - began


def trainer(now: DaemonStatus | None) -> ActorStatus | None:
    return next((actor for actor in now.actors if actor.role == "trainer"), None) if now else None


def status(config: Config) -> DaemonStatus | None:
    with Client(config) as client:
        now = client.request(GetStatus())
    return now if isinstance(now, DaemonStatus) else None


def go_on(client: Client, trainees: Sequence[Trainee]) -> list[float]:
    """When each answered a step that it had never seen."""
    pending = [[client.submit(body) for body in trainee.step()] for trainee in trainees]
    ended: dict[int, float] = {}
    while len(ended) < len(pending):
        next(each for steps in pending for each in steps if not each.ended).result(_PATIENCE_S)
        for number, steps in enumerate(pending):
            if number not in ended and all(each.ended for each in steps):
                ended[number] = time.monotonic()
    return [*ended.values()]


def show(found: Sequence[Recovery]) -> None:
    table = Table("killed", "snapshots", "adapters", "ran again", "trained for", "start", "first", "all")
    for each in found:
        table.add_row(
            each.killed,
            "just taken" if each.snapshots else "none",
            str(each.adapters),
            f"{each.again:,} operations",
            f"{each.trained_s:.1f} s",
            *(f"{seconds:.1f} s" for seconds in (each.start_s, each.first_s, each.all_s)),
        )
    Console(width=120).print(table)
    worst = [each for each in found if not each.snapshots]
    share = statistics.mean((each.all_s - each.start_s) / each.trained_s for each in worst)
    print(f"running again took {share:.2f} of the time that it had taken at first")


if __name__ == "__main__":
    main()
