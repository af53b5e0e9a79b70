"""The daemon's one loop: a plain poller that moves frames and performs what the broker decides.

Reads headers only; arrays pass through untouched. Owns the three sockets and nothing else: requests
are the broker's, processes the supervisor's. A message that cannot be read, or that hits a bug of
ours, is answered if it can be and never ends the loop.
"""

import signal
import socket as posix
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
import zmq

from ..bus.codec import Header, encode, peek
from ..bus.config import Config
from ..bus.errors import BadFrame, Internal, LoractlError
from ..bus.failures import failed
from ..bus.identities import read_identity, unsolicited
from ..bus.ids import ActorId
from ..bus.layout import StateLayout
from ..bus.messages import DaemonStatus, Envelope
from ..bus.sockets import (
    Frames,
    PlainSocket,
    bind_publisher,
    bind_router,
    close,
    new_context,
    receive_waiting,
)
from .broker import Broker
from .decisions import (
    ClientId,
    Decision,
    Forward,
    Heard,
    Publish,
    Relay,
    Reply,
    StopDaemon,
    Tell,
)
from .supervisor import Change, Lost, Spawned, Supervisor

log = structlog.get_logger()
Progress = Callable[[DaemonStatus], None]


class Loop:
    """on_progress is called whenever an actor's phase has changed."""

    def __init__(
        self, config: Config, broker: Broker, supervisor: Supervisor, on_progress: Progress | None = None
    ) -> None:
        layout = StateLayout(Path(config.state_dir))
        self._config = config
        self._broker = broker
        self._supervisor = supervisor
        self._on_progress = on_progress
        self._context = new_context()
        self._clients = bind_router(self._context, layout.client_socket, config.limits)
        self._actors = bind_router(self._context, layout.actor_socket, config.limits, handover=True)
        self._events = bind_publisher(self._context, layout.event_socket, config.limits)
        self._stop_at: float | None = None
        self._signals = 0

    def run(self) -> None:
        """Until a signal or a Shutdown, and all actors have ended."""
        wake, woken = posix.socketpair()
        with wake, woken:
            restore = self._catch_signals(wake)
            poller = zmq.Poller()
            for each in (self._clients, self._actors, woken):
                poller.register(each, zmq.POLLIN)
            try:
                while not self._finished():
                    self._turn(poller, woken)
            finally:
                restore()
                self._supervisor.kill_all()
                self._perform(self._broker.finish(time.monotonic()))
                close(self._context, self._clients, self._actors, self._events)

    # --- one turn --------------------------------------------------------------------------------

    def _turn(self, poller: zmq.Poller, woken: posix.socket) -> None:
        for ready, _ in poller.poll(self._timeout_ms()):
            if ready is self._clients:
                for frames in receive_waiting(self._clients):
                    self._from_client(frames)
            elif ready is self._actors:
                for frames in receive_waiting(self._actors):
                    self._from_actor(frames)
            else:
                woken.recv(4096)
        now = time.monotonic()
        if self._signals and self._stop_at is None:
            self._begin_stop(now)
        if self._signals > 1 or (self._stop_at is not None and now >= self._stop_at):
            self._supervisor.kill_all()
        for change in self._supervisor.tick(now):
            self._changed(change, now)
        if now >= self._broker.next_deadline():
            self._perform(self._broker.tick(now))

    def _timeout_ms(self) -> int:
        now = time.monotonic()
        due = min(self._broker.next_deadline(), self._supervisor.next_deadline(now))
        if self._stop_at is not None:
            due = min(due, max(self._stop_at, now + 0.05))
        return max(0, int((due - now) * 1000) + 1)

    def _from_client(self, frames: Frames) -> None:
        client, header = ClientId(bytes(frames[0])), None
        try:
            header = self._header(frames)
            decisions = self._broker.request(client, header, frames[1:], time.monotonic())
        except LoractlError as error:
            decisions = _refusal(client, header, error)
        except Exception:  # the boundary: a bug costs one request, never the daemon
            log.exception("request.hit_a_bug", kind=header.kind if header else None)
            decisions = self._give_up(header)
        self._perform(decisions)

    def _from_actor(self, frames: Frames) -> None:
        header = None
        try:
            peer = read_identity(bytes(frames[0]))
            header = self._header(frames)
            decisions = self._broker.heard(peer.actor, header, frames[1:], time.monotonic())
        except BadFrame as error:
            log.warning("frame.refused", error=error.message)
            return
        except Exception:  # as above
            log.exception("answer.hit_a_bug", kind=header.kind if header else None)
            decisions = self._give_up(header)
        self._perform(decisions)

    def _header(self, frames: Frames) -> Header:
        if len(frames) < 2:
            raise BadFrame("no header")
        return peek(frames[1], self._config.limits)

    def _give_up(self, header: Header | None) -> list[Decision]:
        if header is None:
            return []
        error = Internal("loractl has a bug here; the daemon's log has the details")
        return self._broker.abandon((header.tenant, header.request), error, time.monotonic())

    # --- what was decided ------------------------------------------------------------------------

    def _perform(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Forward(actor, frames):
                    self._send(self._actors, actor.encode(), frames)
                case Relay(client, frames):
                    self._send(self._clients, client, frames)
                case Reply(client, envelope):
                    self._send(self._clients, client, encode(envelope))
                case Tell(actor, envelope):
                    self._send(self._actors, actor.encode(), encode(envelope))
                case Publish(event):
                    self._events.send_multipart(encode(unsolicited(event)))
                case Heard(actor, ready):
                    self._supervisor.heard(actor, ready=ready, now=time.monotonic())
                    if ready:
                        log.info("actor.ready", actor=actor)
                        self._progressed()
                case StopDaemon():
                    self._signals = max(self._signals, 1)

    def _send(self, socket: PlainSocket, peer: bytes, frames: object) -> None:
        try:
            socket.send_multipart([peer, *frames], copy=False)  # type: ignore[misc]
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # The client hung up, or the actor died: its requests are answered when that is noticed.
            log.debug("peer.gone", peer=peer.hex())

    def _changed(self, change: Change, now: float) -> None:
        match change:
            case Spawned(actor, pid, restarts):
                self._broker.spawned(actor, pid=pid, restarts=restarts)
            case Lost(actor, for_good, details):
                self._perform(self._broker.lost(actor, for_good=for_good, details=details, now=now))
        self._progressed()

    def _progressed(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._broker.status(time.monotonic()))

    # --- the end ---------------------------------------------------------------------------------

    def _begin_stop(self, now: float) -> None:
        log.info("daemon.stopping")
        self._stop_at = now + self._config.daemon.stop_timeout_s
        self._perform(self._broker.drain(now))
        self._supervisor.stop()
        self._progressed()

    def _finished(self) -> bool:
        return self._stop_at is not None and not self._supervisor.alive

    def _catch_signals(self, wake: posix.socket) -> Callable[[], None]:
        """SIGTERM and SIGINT stop; a second one ends at once. SIGCHLD only wakes the poller."""
        wake.setblocking(False)

        def count(_signum: int, _frame: object) -> None:
            self._signals += 1

        before = {sign: signal.signal(sign, count) for sign in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        old_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

        def restore() -> None:
            signal.set_wakeup_fd(old_wake)
            for sign, handler in before.items():
                signal.signal(sign, handler)

        return restore


def _refusal(client: ClientId, header: Header | None, error: LoractlError) -> list[Decision]:
    if header is None:  # nobody knows which request this was
        log.warning("frame.refused", error=error.message)
        return []
    answer = Envelope(request=header.request, tenant=header.tenant, body=failed(error))
    return [Reply(client, answer)]


__all__ = ["ActorId", "Loop"]
