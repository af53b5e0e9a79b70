"""HTTP futures: how many a second, how long each takes, and what a crowd of polls does to heartbeats.

    python bench/http_futures.py [--seconds 5] [--polls 2000]

Starts a daemon of its own with a tiny model and no sampler. A no-op future is an optim_step without
gradients: POST, the bus, the trainer's loop and back, then one retrieve_future. Its row says how many
clients take turns at once, each with a training run of its own. The crowd is polls that are all held
open while heartbeats come one after another; the row before it has the heartbeats alone.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loading.api import Api, connected, models
from loractl.bus.config import load_config
from loractl.bus.keys import ensure_local_key
from loractl.bus.layout import StateLayout
from loractl.client.interrupts import interrupt_when_ended
from loractl.client.tiny_model import make_tiny_model
from loractl.daemon import launch
from rich.console import Console
from rich.table import Table

CLIENTS = (1, 16, 64)
HEARTBEATS_S = 0.01


async def noop(api: Api, session: str, number: int, until: float) -> list[float]:
    """Seconds of each no-op future of one client."""
    model = f"{session}:train:{number}"
    took = []
    seq = 0
    while time.perf_counter() < until:
        seq += 1
        begun = time.perf_counter()
        found = await api.done(await api.post("optim_step", model_id=model, seq_id=seq))
        took.append(time.perf_counter() - begun)
        assert found["metrics"]["applied"] == 0, found
    return took


async def heartbeats(api: Api, session: str, until: float) -> list[float]:
    took = []
    while time.perf_counter() < until:
        begun = time.perf_counter()
        await api.post("session_heartbeat", session_id=session)
        took.append(time.perf_counter() - begun)
        await asyncio.sleep(HEARTBEATS_S)
    return took


def beats(url: str, key: str, session: str, seconds: float) -> list[float]:
    async def run() -> list[float]:
        async with connected(url, key) as http:
            return await heartbeats(Api(http), session, time.perf_counter() + seconds)

    return asyncio.run(run())


async def crowd(api: Api, url: str, key: str, session: str, polls: int, seconds: float) -> list[float]:
    """Heartbeats while `polls` futures, which wait behind a number that never comes, are polled at once."""
    model = f"{session}:train:0"
    # Number 1 never comes, so all that follow wait.
    started = await asyncio.gather(
        *(api.post("optim_step", model_id=model, seq_id=2 + i) for i in range(polls))
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        # In a process of its own, so that they do not wait behind this one's polls.
        beating = asyncio.get_running_loop().run_in_executor(elsewhere, beats, url, key, session, seconds)
        polling = [
            asyncio.create_task(api.post("retrieve_future", request_id=each["request_id"]))
            for each in started
        ]
        took = await beating
    for task in polling:
        task.cancel()
    await asyncio.gather(*polling, return_exceptions=True)
    return took


def row(table: Table, name: str, took: list[float], seconds: float) -> None:
    cuts = statistics.quantiles(took, n=100)
    ms = [f"{1000 * value:.1f}" for value in (cuts[49], cuts[98], max(took))]
    table.add_row(name, f"{len(took) / seconds:.0f}", *ms)


async def measure(url: str, key: str, base: str, seconds: float, polls: int) -> Table:
    table = Table("what", "a second", "p50 ms", "p99 ms", "max ms")
    async with connected(url, key) as http:
        api = Api(http)
        session = await models(api, base, max(CLIENTS))
        for clients in CLIENTS:
            fresh = await models(api, base, clients)
            until = time.perf_counter() + seconds
            took = await asyncio.gather(*(noop(api, fresh, number, until) for number in range(clients)))
            row(table, f"no-op futures, {clients} clients", [t for each in took for t in each], seconds)
        alone = await heartbeats(api, session, time.perf_counter() + seconds)
        row(table, "heartbeats alone", alone, seconds)
        beside = await crowd(api, url, key, session, polls, seconds)
        row(table, f"heartbeats beside {polls} polls", beside, seconds)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--polls", type=int, default=2000)
    arguments = parser.parse_args()
    interrupt_when_ended()
    with tempfile.TemporaryDirectory(prefix="loractl-") as root:
        make_tiny_model(Path(root) / "model", steps=0)
        settings = [
            "model.name=tiny",
            f"model.path={root}/model",
            "daemon.http=127.0.0.1:0",
            "sampler.count=0",
            "trainer.threads=1",
        ]
        config = load_config(state_dir=f"{root}/s", environ={}, overrides=settings)
        status = launch.start_detached(config, 120.0)
        try:
            url = next(actor.details for actor in status.actors if actor.role == "bridge")
            key = ensure_local_key(StateLayout(Path(config.state_dir)))
            measuring = measure(url, key, "tiny", arguments.seconds, arguments.polls)
            Console().print(asyncio.run(measuring))
        finally:
            launch.stop(config)


if __name__ == "__main__":
    main()
