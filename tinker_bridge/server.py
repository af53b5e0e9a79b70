"""The bridge's process: one event loop with the HTTP server, a client of the bus and an actor's link."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import structlog
import uvicorn

from ..bus.async_actor_link import AsyncActorLink
from ..bus.async_client import AsyncClient
from ..bus.config import Config, http_address
from ..bus.errors import NotSupported, StartFailed
from ..bus.failures import failed
from ..bus.messages import Drain, Echo, Echoed, Envelope
from .app import create_app

# For answers under way when the daemon stops; the supervisor waits a little longer.
_GRACE_S = 2

log = structlog.get_logger()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The loop below handles signals: uvicorn would raise them again at its end."""
        yield


async def run_bridge(config: Config, actor: str) -> None:
    """Serve HTTP until the daemon says Drain or the process is told to end.

    Raises:
        StartFailed: the address is in use or not ours.
        InvalidConfig: daemon.http is not HOST:PORT.
        DaemonNotRunning: nobody started us.
    """
    listening = listen(config.daemon.http)
    async with AsyncActorLink(config, actor, "bridge") as link, AsyncClient(config) as client:
        server = _Server(
            uvicorn.Config(
                create_app(client),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        stopping = asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stopping.set)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        # The socket listens already: requests that come before uvicorn looks wait in its queue.
        link.ready(url_of(listening))
        log.info("bridge.opened", url=url_of(listening))
        await _until_drained(link, stopping, serving)
        server.should_exit = True
        await serving
        log.info("bridge.closed")


def listen(http: str) -> socket.socket:
    """Open the listening socket; port 0 takes a free one.

    Raises:
        StartFailed, InvalidConfig: as `run_bridge`.
    """
    host, port = http_address(http)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # A port that a bridge left a moment ago can be taken again; one that is being served cannot.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise StartFailed(
            f"cannot serve HTTP on {http}: {reason}; choose another --http HOST:PORT, or port 0 for a free one"
        ) from error
    listening.setblocking(False)
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_drained(
    link: AsyncActorLink, stopping: asyncio.Event, serving: "asyncio.Task[None]"
) -> None:
    """Answer what the broker sends; end on Drain, on a signal, or when the server ends by itself."""
    stopped = asyncio.create_task(stopping.wait())
    try:
        while not stopped.done() and not serving.done():
            receiving = asyncio.create_task(link.receive(60.0))
            await asyncio.wait([receiving, stopped, serving], return_when=asyncio.FIRST_COMPLETED)
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
