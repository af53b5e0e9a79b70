"""A daemon of a load scenario's own, and what its processes and its directory take."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from loractl.bus.client import Client
from loractl.bus.config import Config, load_config
from loractl.bus.keys import Keys, ensure_local_key
from loractl.bus.layout import StateLayout
from loractl.bus.messages import DaemonStatus, GetStatus
from loractl.client.tiny_model import make_tiny_model
from loractl.daemon import launch

BASE = "tiny"


@dataclass(frozen=True)
class Service:
    """processes: by what they are, the broker's among them. state: its directory."""

    config: Config
    url: str
    key: str
    state: Path
    processes: dict[str, psutil.Process]

    def new_key(self, tenant: str) -> str:
        return Keys(StateLayout(self.state)).create(tenant)


@contextmanager
def served(*settings: str, samplers: int = 0) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="loractl-") as root:
        make_tiny_model(Path(root) / "model", steps=0)
        overrides = [
            f"model.name={BASE}",
            f"model.path={root}/model",
            "daemon.http=127.0.0.1:0",
            f"sampler.count={samplers}",
            "sampler.engine=torch",
            "trainer.threads=1",
            *settings,
        ]
        config = load_config(state_dir=f"{root}/s", environ={}, overrides=overrides)
        status = launch.start_detached(config, 300.0)
        try:
            yield _service(config, status)
        finally:
            launch.stop(config)


def _service(config: Config, status: DaemonStatus) -> Service:
    layout = StateLayout(Path(config.state_dir))
    url = next(actor.details for actor in status.actors if actor.role == "bridge")
    with Client(layout) as client:
        now = client.request(GetStatus())
    assert isinstance(now, DaemonStatus)
    processes = {"broker": psutil.Process(now.pid)}
    processes |= {actor.role: psutil.Process(actor.pid) for actor in now.actors}
    return Service(config, url, ensure_local_key(layout), layout.root, processes)


@dataclass(frozen=True)
class Sizes:
    """At one moment. rss: of each process. state: bytes that the state directory takes on disk."""

    at_s: float
    rss: dict[str, int]
    state: int


@dataclass
class Watched:
    """Sizes of a service, taken every so often by a thread."""

    sizes: list[Sizes] = field(default_factory=list)

    def peak(self, process: str) -> int:
        return max(each.rss[process] for each in self.sizes)


@contextmanager
def watched(service: Service, every_s: float, *, state: bool = False) -> Iterator[Watched]:
    """state: measure the directory, too, which takes a walk through it."""
    found, over = Watched(), threading.Event()

    def look() -> None:
        while True:
            found.sizes.append(sizes_of(service, state=state))
            if over.wait(every_s):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def sizes_of(service: Service, *, state: bool = False) -> Sizes:
    rss = {name: process.memory_info().rss for name, process in service.processes.items()}
    return Sizes(time.monotonic(), rss, _disk_bytes(service.state) if state else 0)


def _disk_bytes(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with suppress(FileNotFoundError):  # deleted meanwhile
                total += 512 * Path(folder, name).lstat().st_blocks
    return total


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
