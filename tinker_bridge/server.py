"""The bridge's process: one event loop with the HTTP server, a client of the bus and an actor's link."""

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from ..bus.async_actor_link import AsyncActorLink
from ..bus.async_client import AsyncClient
from ..bus.config import Config
from ..bus.errors import NotSupported
from ..bus.failures import failed
from ..bus.layout import StateLayout
from ..bus.listening import listen, listen_as_before, url_of
from ..bus.messages import Drain, Echo, Echoed, Envelope
from .allocator import give_back_large_blocks
from .app import create_app
from .bridge import Bridge, open_bridge
from .collecting import collect_by_hand, keep_collecting
from .connections import Connection
from .housekeeping import keep_house
from .run_again import run_again
from .two_lines import TwoLines

# Longer than clients keep idle connections: who closes first must not be we, or a request that is on its
# way at that moment is lost with the connection.
_IDLE_S = 120
# Each takes a tenth of a millisecond, and a heartbeat may be behind them.
_ACCEPTED_AT_ONCE = 8
_CONNECTIONS_WAITING = 4096
# Of connections; and what else is open: databases, logs, exports that are being read.
_MOST_FILES = 2**16
_OTHER_FILES = 512
# For answers under way when the daemon stops; the supervisor waits a little longer.
_GRACE_S = 2

log = structlog.get_logger()


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # uvicorn lets the loop accept so many at one time; many more may wait for that.
        for each in sockets or ():
            each.listen(_CONNECTIONS_WAITING)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The loop below handles signals: uvicorn would raise them again at its end."""
        yield


async def run_bridge(config: Config, actor: str, lines: TwoLines) -> None:
    """Serve HTTP until the daemon says Drain or the process is told to end. lines: the running loop's selector.

    Raises:
        StartFailed: the address is in use or not ours.
        InvalidConfig: daemon.http is not HOST:PORT.
        DaemonNotRunning: nobody started us.
        StorageFailed: the bridge's store cannot be opened.
    """
    give_back_large_blocks()
    most_files = _allow_many_connections()
    http = config.daemon.http
    listening = (
        listen_as_before(StateLayout(Path(config.state_dir)).http_port) if http == "auto" else listen(http)
    )
    async with AsyncActorLink(config, actor, "bridge") as link, AsyncClient(config) as client:
        bridge = open_bridge(config, client)
        server = _Server(
            uvicorn.Config(
                create_app(bridge),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_GRACE_S,
                timeout_keep_alive=_IDLE_S,
                backlog=_ACCEPTED_AT_ONCE,
                http=partial(Connection, lines=lines),  # type: ignore[arg-type]  # called like the class
                # Beyond it 503: without files nothing could be answered at all, nor written.
                limit_concurrency=max(most_files - _OTHER_FILES, most_files // 2),
            )
        )
        # With the daemon goes all that this process can do: the next one takes up what is under way.
        stopping = bridge.futures.gone
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stopping.set)
        collect_by_hand()
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        keeping = asyncio.create_task(_work(bridge))
        # The socket listens already: requests that come before uvicorn looks wait in its queue.
        link.ready(url_of(listening))
        log.info("bridge.opened", url=url_of(listening))
        await _until_drained(link, stopping, serving, keeping)
        server.should_exit = True
        broken = keeping.done()
        keeping.cancel()
        # Polls that are held open end with this.
        bridge.futures.close()
        await serving
        bridge.close()
        log.info("bridge.closed")
        if broken:
            keeping.result()  # a bug: it is raised here, and the supervisor starts a sound bridge


async def _work(bridge: Bridge) -> None:
    """Take up what an earlier process left, and keep house until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(run_again(bridge))
        group.create_task(keep_house(bridge))
        group.create_task(keep_collecting(lambda: len(bridge.futures)))


def _allow_many_connections() -> int:
    """Every poll that is held open has a file; the 1,024 that are usual at first are there for `select`.
    How many there may be, within reason: an unlimited number would be no bound."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(most, _MOST_FILES) if most != resource.RLIM_INFINITY else _MOST_FILES


async def _until_drained(
    link: AsyncActorLink, stopping: asyncio.Event, *working: "asyncio.Task[None]"
) -> None:
    """Answer what the broker sends; end on Drain, on a signal, or when what never ends by itself does."""
    stopped = asyncio.create_task(stopping.wait())
    ends = [stopped, *working]
    try:
        while not any(end.done() for end in ends):
            receiving = asyncio.create_task(link.receive(60.0))
            await asyncio.wait([receiving, *ends], return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                receiving.cancel()
                return
            for envelope in receiving.result():
                if isinstance(envelope.body, Drain):
                    return
                _answer(link, envelope)
    finally:
        stopped.cancel()


def _answer(link: AsyncActorLink, envelope: Envelope) -> None:
    match envelope.body:
        case Echo(payload=payload):
            link.reply(envelope, Echoed(payload=payload))
        case body:
            link.reply(envelope, failed(NotSupported(f"the bridge does not serve {body.kind}")))
