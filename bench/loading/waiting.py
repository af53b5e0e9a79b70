"""Many futures wait, each with a poll that is held open, while others train: what heartbeats notice of it.

All that wait are optim_steps behind a number that has not come. At the end it comes, and all of them are
answered, in order.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from .api import Api, connected, models, new_session
from .elsewhere import Told, elsewhere
from .heartbeats import Quickness, beating, quickness
from .service import BASE, Service, served, watched

RUNS = 8
_SENT_AT_ONCE = 64


@dataclass(frozen=True)
class Waiting:
    """futures_per_s: that the clients got done beside those that wait. released_s: from the number that was
    missing to the last answer of all that waited for it. rss, in bytes: the most of each process."""

    waiting: int
    clients: int
    alone: Quickness
    opening: Quickness
    held: Quickness
    submitting: Quickness
    released: Quickness
    futures_per_s: float
    answered: int
    released_s: float
    rss: dict[str, int]


def measure(*, waiting: int, clients: int, seconds: float) -> Waiting:
    """seconds: of each phase in which nothing changes."""
    with (
        served("trainer.lane_gap_timeout_s=100000") as service,
        watched(service, 0.2) as memory,
    ):
        return asyncio.run(_phases(service, memory.peak, waiting, clients, seconds))


async def _phases(
    service: Service, peak: Callable[[str], int], waiting: int, clients: int, seconds: float
) -> Waiting:
    # A tenant of their own, for what waits takes up the places that its tenant has at the trainer.
    busy = service.new_key("busy")
    async with connected(service.url, service.key) as http, connected(service.url, busy) as others:
        api = Api(http)
        session = await models(api, BASE, RUNS)
        trained = await models(Api(others), BASE, clients)
        heard = await new_session(api)
        marks = [time.monotonic()]
        with beating(service.url, service.key, heard) as beats:
            await asyncio.sleep(seconds)
            marks.append(time.monotonic())
            with elsewhere(hold, service.url, service.key, session, waiting) as crowd:
                await crowd.heard()
                marks.append(time.monotonic())
                await asyncio.sleep(seconds)
                marks.append(time.monotonic())
                with elsewhere(submit, service.url, busy, trained, clients, seconds) as submitters:
                    done = await submitters.heard()
                marks.append(time.monotonic())
                firsts = [
                    await api.post("optim_step", model_id=f"{session}:train:{run}", seq_id=1)
                    for run in range(RUNS)
                ]
                for first in firsts:
                    await api.done(first)
                answered = await crowd.heard()
                marks.append(time.monotonic())
    parts = [quickness(beats, *pair) for pair in pairwise(marks)]
    return Waiting(
        waiting,
        clients,
        *parts,
        futures_per_s=done / seconds,
        answered=answered,
        released_s=marks[-1] - marks[-2],
        rss={name: peak(name) for name in service.processes},
    )


async def hold(api: Api, told: Told, session: str, count: int) -> None:
    """Send operations that wait for the first one of their run, and poll for all of them."""
    sending = asyncio.Semaphore(_SENT_AT_ONCE)

    async def sent(index: int) -> dict[str, object]:
        run, seq = index % RUNS, 2 + index // RUNS
        async with sending:
            return await api.post("optim_step", model_id=f"{session}:train:{run}", seq_id=seq)

    started = await asyncio.gather(*(sent(index) for index in range(count)))
    polls = [asyncio.create_task(api.done(each)) for each in started]
    told(len(started))
    answers = await asyncio.gather(*polls)
    told(sum(answer["type"] == "optim_step" for answer in answers))


async def submit(api: Api, told: Told, session: str, clients: int, seconds: float) -> None:
    """Clients that each have one no-op future after the other."""
    until = time.monotonic() + seconds

    async def client(run: int) -> int:
        seq = 0
        while time.monotonic() < until:
            seq += 1
            await api.done(await api.post("optim_step", model_id=f"{session}:train:{run}", seq_id=seq))
        return seq

    told(sum(await asyncio.gather(*(client(run) for run in range(clients)))))
