"""The daemon's one loop: a plain poller that moves frames and performs what the broker decides.

Arrays pass through untouched. Owns the three sockets and nothing else: requests are the broker's,
processes the supervisor's. No message ends the loop (see `reception`); a journal that is written no more
does.
"""

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import structlog
import zmq

from ..bus.config import Config
from ..bus.errors import StorageFailed
from ..bus.layout import StateLayout
from ..bus.messages import DaemonStatus
from ..bus.sockets import (
    bind_publisher,
    bind_router,
    close,
    new_context,
    receive_waiting,
)
from .broker import Broker
from .chaos import Chaos
from .chaos_log import say_deeds, say_end
from .decisions import (
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
from .inbox import MESSAGES_PER_TURN, Inbox
from .journal.records import Record
from .journal.writer import Writer
from .outbox import Outbox
from .reception import Reception
from .remote_clients import RemoteClients
from .signals import Signals
from .supervisor import Change, Lost, Spawned, Supervisor

log = structlog.get_logger()
Progress = Callable[[DaemonStatus], None]

# What a process sent just before it ended may still be on its way to us for so long, and has come after so long.
_LAST_WORDS_MS, _LAST_WORDS_S = 20, 1.0
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
        remote = RemoteClients(config, self._context, layout) if config.daemon.listen else None
        self._chaos = chaos
        self._inbox = Inbox(self._clients, remote, chaos)
        self._outbox = Outbox(self._clients, self._actors, self._events, remote, chaos)
        self._reception = Reception(broker, config.limits, self._perform)
        self._stop_asked = False
        self._kill_at = math.inf  # when actors that are still draining are ended
        # When to look at the actors' processes again; a signal makes it now.
        self._supervise_at = 0.0
        self._tick_at = 0.0

    def run(self) -> None:
        """Until a signal, `stop` or a Shutdown, and until all actors have ended."""
        poller = zmq.Poller()
        with Signals() as signals:
            for source in (*self._inbox.sources, self._actors, signals.woken):
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
        chaos_at = self._chaos.next_due() if self._chaos is not None else math.inf
        due = min(self._tick_at, self._supervise_at, chaos_at)
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
        # What falls due because of this turn's messages is looked at in the next one.
        self._tick_at = self._broker.next_deadline()

    def _take_in(self, source: object, signals: Signals) -> None:
        if source in self._inbox.sources:
            for arrived in self._inbox.take(source):
                self._reception.from_client(arrived)
        elif source is self._actors:
            for frames in islice(receive_waiting(self._actors), MESSAGES_PER_TURN):
                self._reception.from_actor(frames)
        elif self._journal is not None and source == self._journal.woken.fileno():
            self._from_journal(self._journal)
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

    def _stir(self, chaos: Chaos, now: float) -> None:
        due = chaos.due(now)
        for frames in due.asked:
            self._reception.from_client((frames, None))
        self._outbox.put_as_they_are(due.told)
        if not self._stopping and (victim := chaos.victim(self._supervisor.steady(now), now)):
            self._supervisor.kill(victim)
        say_deeds(chaos)

    def _from_journal(self, journal: Writer) -> None:
        """Raises StorageFailed: its thread has ended, so nobody would ever be told anything again."""
        ended = journal.ended  # looked at before, so that all that it told is taken
        self._written(journal.take_done())
        if ended:
            raise StorageFailed(f"the journal is written no more: see {self._layout.logs / 'daemon.log'}")

    # --- what was decided ------------------------------------------------------------------------

    def _perform(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Forward() | Relay() | Reply() | Tell() | Publish():
                    self._outbox.put(decision)
                case WriteDown(record):
                    self._records.append(record)
                case Heard():
                    self._heard(decision)
                case Say(event, fields):
                    log.warning(event, **fields)
                case StopDaemon():
                    self.stop()

    def _heard(self, heard: Heard) -> None:
        self._supervisor.heard(
            heard.actor, ready=heard.ready, now=time.monotonic(), busy_s=heard.busy_s, at=heard.at
        )
        self._supervise_at = min(self._supervise_at, self._supervisor.next_deadline())
        if heard.ready:
            log.info("actor.ready", actor=heard.actor)
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
        """Take in all that a process said before it ended: its answers count. Others may never fall silent."""
        until = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until and self._actors.poll(_LAST_WORDS_MS):
            for frames in islice(receive_waiting(self._actors), MESSAGES_PER_TURN):
                self._reception.from_actor(frames)

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
        close(self._context, *self._inbox.sources, self._actors, self._events)


def _timeout_ms(due: float) -> int:
    """How long the poller may sleep until then; it wakes now and again even if nothing ever is due."""
    wait_s = min(due - time.monotonic(), _LONGEST_POLL_S)
    return max(0, math.ceil(wait_s * 1000))
