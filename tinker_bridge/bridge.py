"""The bridge's parts, put together once and handed to every route."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..bus.config import Config
from ..bus.errors import StorageFailed
from ..bus.keys import Keys
from ..bus.layout import StateLayout
from .apart import Apart
from .base import BaseModel, Bus
from .checkpoints import Checkpoints
from .exports import Exports
from .founding.serving import Serving
from .founding.tokenizer import TokenizerThread
from .future_ids import Origin
from .future_journal import FutureJournal
from .future_rows import Settle
from .futures import Futures
from .health_check import HealthCheck
from .pace import Pace
from .repeats import Repeats
from .runs import Runs
from .sample_room import SampleRoom
from .samplers import Samplers
from .sampling import Sampling
from .sessions import Sessions
from .store import Store
from .training import Training
from .unread import Unread


@dataclass(frozen=True, slots=True)
class Bridge:
    config: Config
    layout: StateLayout
    bus: Bus
    keys: Keys
    base: BaseModel
    store: Store
    journal: FutureJournal
    pace: Pace
    apart: Apart
    unread: Unread
    health: HealthCheck
    futures: Futures
    sessions: Sessions
    checkpoints: Checkpoints
    exports: Exports
    repeats: Repeats
    runs: Runs
    training: Training
    samplers: Samplers
    sampling: Sampling
    tokenizer: TokenizerThread
    serving: Serving

    async def settled(self) -> None:
        """Wait until every record that can be seen here is durable. Raises StorageFailed: it will not be."""
        if not self.store.settling.is_settled:
            await self.journal.write(Settle())

    def close(self) -> None:
        self.futures.close()
        self.tokenizer.close()
        with suppress(StorageFailed):  # times, which a full disk may cost; what the journal holds it may not
            self.sessions.flush()
            self.runs.flush()
        self.journal.close()
        self.store.close()


def open_bridge(config: Config, bus: Bus) -> Bridge:
    """Open what the state directory holds.

    Raises:
        StorageFailed: a file of it cannot be opened.
    """
    layout = StateLayout(Path(config.state_dir))
    store = Store(layout.tinker_store)
    journal = FutureJournal(layout.tinker_futures, first=store.settling.settle)
    settings = config.bridge
    base = BaseModel(config.model, bus)
    checkpoints = Checkpoints(store, bus, layout, clock=time.time)
    futures = Futures(
        journal,
        secret=store.secret,
        kept_bytes=settings.result_bytes,
        kept_s=settings.result_s,
        clock=time.time,
    )
    runs = Runs(store, bus, base, checkpoints, clock=time.time)
    samplers = Samplers(
        store,
        bus,
        base,
        checkpoints,
        kept_snapshots=settings.ephemeral_samplers,
        clock=time.time,
        origin=Origin(store.secret, ("sampler",)),
    )
    sessions = Sessions(
        store,
        expiry_s=settings.session_expiry_s,
        clock=time.time,
        most_live=config.quotas.sessions,
    )
    training = Training(bus, sessions, runs, futures, held_bytes=config.quotas.held_bytes)
    health = HealthCheck(bus, clock=time.monotonic)
    apart = Apart()
    room = SampleRoom(settings.pending_samples, held_bytes=config.quotas.held_bytes)
    return Bridge(
        config=config,
        layout=layout,
        bus=bus,
        keys=Keys(layout),
        base=base,
        store=store,
        journal=journal,
        pace=Pace(),
        apart=apart,
        unread=Unread(),
        health=health,
        futures=futures,
        sessions=sessions,
        checkpoints=checkpoints,
        exports=Exports(store, layout, most_bytes=config.quotas.checkpoint_bytes, clock=time.time),
        repeats=Repeats(journal, clock=time.time),
        runs=runs,
        training=training,
        samplers=samplers,
        sampling=Sampling(bus, base, samplers, futures, room=room, apart=apart),
        tokenizer=TokenizerThread(base),
        serving=Serving(training, health),
    )
