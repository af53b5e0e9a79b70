"""The daemon's one loop: a plain poller that moves frames and performs what the broker decides.

Reads headers only; arrays pass through untouched. Owns the three sockets and nothing else: requests
are the broker's, processes the supervisor's. A message that cannot be read, or that hits a bug of
ours, is answered if it can be and never ends the loop.
"""

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import structlog
import zmq

from ..bus.codec import Header, peek
from ..bus.config import Config
from ..bus.errors import BadFrame, Internal, LoractlError
from ..bus.identities import read_identity
from ..bus.ids import ActorId
from ..bus.layout import StateLayout
from ..bus.messages import DaemonStatus
from ..bus.sockets import (
    Frames,
    bind_publisher,
    bind_router,
    close,
    new_context,
    receive_waiting,
)
from .answers import turned_away
from .broker import Broker
from .chaos import Chaos
from .chaos_log import say_deeds, say_end
from .decisions import (
    ClientId,
    Decision,
    Forward,
    Heard,
    Publish,
    Relay,
    Reply,
    Say,
    StopDaemon,
    Tell,
    WriteDown,
)
from .in_hand import read_in_hand
from .journal.records import Record
from .journal.writer import Writer
from .outbox import Outbox
from .remote_clients import RemoteClients
from .signals import Signals
from .supervisor import Change, Lost, Spawned, Supervisor

log = structlog.get_logger()
Progress = Callable[[DaemonStatus], None]

# One side's flood never keeps the other side waiting for longer than this many messages.
_MESSAGES_PER_TURN = 256
# What a process sent just before it ended may still be on its way to us for so long.
_LAST_WORDS_MS = 20
_LONGEST_POLL_S = 3600.0


class Loop:
    """journal: None keeps nothing. on_progress is called whenever an actor's phase has changed."""

    def __init__(
        self,
        config: Config,
        broker: Broker,
        supervisor: Supervisor,
        on_progress: Progress | None = None,
        *,
        journal: Writer | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        self._layout = layout = StateLayout(Path(config.state_dir))
        self._journal = journal
        # Written at the end of a turn, all at once: one commit for all.
        self._records: list[Record] = []
        self._config = config
        self._broker = broker
        self._supervisor = supervisor
        self._on_progress = on_progress
        self._context = new_context()
        self._clients = bind_router(self._context, layout.client_socket, config.limits)
        self._actors = bind_router(self._context, layout.actor_socket, config.limits, handover=True)
        self._events = bind_publisher(self._context, layout.event_socket, config.limits)
        self._remote = RemoteClients(config, self._context, layout) if config.daemon.listen else None
        self._remote_sources = self._remote.sources if self._remote is not None else ()
        self._chaos = chaos
        self._outbox = Outbox(self._clients, self._actors, self._events, self._remote, chaos)
        self._stop_asked = False
        self._kill_at = math.inf  # when actors that are still draining are ended
        # When to look at the actors' processes again; a signal makes it now.
        self._supervise_at = 0.0
        self._tick_at = 0.0

    def run(self) -> None:
        """Until a signal, `stop` or a Shutdown, and until all actors have ended."""
        poller = zmq.Poller()
        with Signals() as signals:
            for source in (self._clients, self._actors, signals.woken, *self._remote_sources):
                poller.register(source, zmq.POLLIN)
            if self._journal is not None:
                poller.register(self._journal.woken, zmq.POLLIN)
            try:
                while not self._finished():
                    self._turn(poller, signals)
            finally:
                self._end()

    def stop(self) -> None:
        """As SIGTERM: drain the actors, answer everybody, end."""
        self._stop_asked = True
        self._supervise_at = 0.0

    # --- one turn --------------------------------------------------------------------------------

    def _turn(self, poller: zmq.Poller, signals: Signals) -> None:
        # What falls due because of this turn's messages is looked at in the next one.
        tick_at = self._broker.next_deadline()
        due = min(
            tick_at, self._supervise_at, self._chaos.next_due() if self._chaos is not None else math.inf
        )
        for source, _ in poller.poll(_timeout_ms(due)):
            self._take_in(source, signals)
        now = time.monotonic()
        if self._chaos is not None:
            self._stir(self._chaos, now)
        # Processes cost system calls to look at: not between any two messages.
        if now >= self._supervise_at:
            self._supervise(signals, now)
        if now >= self._tick_at:
            self._perform(self._broker.tick(now))
        self._write_down()
        self._outbox.send()
        self._tick_at = self._broker.next_deadline()

    def _take_in(self, source: object, signals: Signals) -> None:
        if source is self._clients:
            for frames in islice(receive_waiting(self._clients), _MESSAGES_PER_TURN):
                self._arrived(frames)
        elif source is self._actors:
            for frames in islice(receive_waiting(self._actors), _MESSAGES_PER_TURN):
                self._from_actor(frames)
        elif self._remote is not None and source in self._remote_sources:
            self._from_remote(self._remote)
        elif self._journal is not None and source == self._journal.woken.fileno():
            self._written(self._journal.take_done())
        else:
            signals.take_in()
            self._supervise_at = 0.0

    def _supervise(self, signals: Signals, now: float) -> None:
        if (self._stop_asked or signals.stops) and not self._stopping:
            self._begin_stop(now)
        if signals.stops > 1 or now >= self._kill_at:
            self._kill_at = math.inf
            self._supervisor.kill_all()
        for change in self._supervisor.tick(now):
            self._changed(change, now)
        if not self._stop_asked or self._stopping:
            self._supervise_at = min(self._supervisor.next_deadline(), self._kill_at)

    def _from_remote(self, remote: RemoteClients) -> None:
        remote.answer_zap()
        for frames, refusal in islice(remote.receive(), _MESSAGES_PER_TURN):
            self._from_client(frames, refusal)

    def _arrived(self, frames: Frames) -> None:
        """A message as it came, or as chaos has it come."""
        for each in (frames,) if self._chaos is None else self._chaos.asked(frames, time.monotonic()):
            self._from_client(each)

    def _stir(self, chaos: Chaos, now: float) -> None:
        due = chaos.due(now)
        for frames in due.asked:
            self._from_client(frames)
        self._outbox.put_as_they_are(due.told)
        if not self._stopping and (victim := chaos.victim(self._supervisor.steady(now), now)):
            self._supervisor.kill(victim)
        say_deeds(chaos)

    def _from_client(self, frames: Frames, refusal: LoractlError | None = None) -> None:
        client, header = ClientId(bytes(frames[0])), None
        try:
            header = self._header(frames)
            if refusal is not None:
                raise refusal
            self._perform(self._broker.request(client, header, frames[1:], time.monotonic()))
        except LoractlError as error:
            if header is None:  # nobody knows which request this was
                log.warning("frame.refused", error=error.message)
            else:
                self._perform([turned_away(client, header, error)])
        except Exception:  # the boundary: a bug costs one request, never the daemon
            log.exception("request.hit_a_bug", kind=header.kind if header else None)
            self._give_up(header)

    def _from_actor(self, frames: Frames) -> None:
        header = None
        try:
            actor = read_identity(bytes(frames[0]))
            header = self._header(frames)
            self._perform(self._broker.heard(actor, header, frames[1:], time.monotonic()))
        except LoractlError as error:
            log.warning("frame.refused", error=error.message)
        except Exception:  # as above
            log.exception("answer.hit_a_bug", kind=header.kind if header else None)
            self._give_up(header)

    def _header(self, frames: Frames) -> Header:
        if len(frames) < 2:
            raise BadFrame("no header")
        return peek(frames[1], self._config.limits)

    def _give_up(self, header: Header | None) -> None:
        if header is not None:
            error = Internal("loractl has a bug here; the daemon's log has the details")
            self._perform(self._broker.abandon((header.tenant, header.request), error, time.monotonic()))

    # --- what was decided ------------------------------------------------------------------------

    def _perform(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Forward() | Relay() | Reply() | Tell() | Publish():
                    self._outbox.put(decision)
                case WriteDown(record):
                    self._records.append(record)
                case Heard(actor, ready):
                    self._heard(actor, ready=ready)
                case Say(event, fields):
                    log.warning(event, **fields)
                case StopDaemon():
                    self.stop()

    def _heard(self, actor: ActorId, *, ready: bool) -> None:
        self._supervisor.heard(actor, ready=ready, now=time.monotonic())
        if ready:
            log.info("actor.ready", actor=actor)
            self._supervise_at = 0.0
            self._progressed()

    def _write_down(self) -> None:
        if self._records and self._journal is not None:
            records, self._records = self._records, []
            self._journal.submit(records)

    def _written(self, done: Iterable[tuple[Record, str]]) -> None:
        """done: records and why each was refused; "" where it is durable."""
        now = time.monotonic()
        for record, refused in done:
            self._perform(self._broker.written(record, now, refused=refused))

    def _changed(self, change: Change, now: float) -> None:
        match change:
            case Spawned(actor, pid, restarts):
                self._broker.spawned(actor, pid=pid, restarts=restarts)
            case Lost(actor, for_good, details, killed):
                self._hear_last_words()
                in_hand = read_in_hand(self._layout.in_hand)
                self._perform(
                    self._broker.lost(
                        actor, for_good=for_good, details=details, now=now, killed=killed, in_hand=in_hand
                    )
                )
        self._progressed()

    def _hear_last_words(self) -> None:
        """Take in what a process said before it ended: its answers count."""
        self._actors.poll(_LAST_WORDS_MS)
        for frames in islice(receive_waiting(self._actors), _MESSAGES_PER_TURN):
            self._from_actor(frames)

    def _progressed(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._broker.status(time.monotonic()))

    # --- the end ---------------------------------------------------------------------------------

    @property
    def _stopping(self) -> bool:
        return self._supervisor.stopping

    def _begin_stop(self, now: float) -> None:
        log.info("daemon.stopping")
        self._kill_at = now + self._config.daemon.stop_timeout_s
        self._perform(self._broker.drain(now))
        self._supervisor.stop()
        self._progressed()

    def _finished(self) -> bool:
        return self._stopping and not self._supervisor.alive

    def _end(self) -> None:
        self._supervisor.kill_all()
        self._perform(self._broker.finish(time.monotonic()))
        if self._journal is not None:
            self._write_down()
            self._journal.close()
            self._written(self._journal.take_done())
        if self._chaos is not None:
            self._outbox.put_as_they_are(self._chaos.rest().told)
            say_end(self._chaos)
        self._outbox.send()
        log.info("daemon.stopped")
        close(self._context, self._clients, self._actors, self._events, *self._remote_sources)


def _timeout_ms(due: float) -> int:
    """How long the poller may sleep until then; it wakes now and again even if nothing ever is due."""
    wait_s = min(due - time.monotonic(), _LONGEST_POLL_S)
    return max(0, math.ceil(wait_s * 1000))
