"""The thread that tells the daemon that an actor lives, and ends the actor when the daemon does not.

It has a socket of its own, because zmq sockets belong to one thread each. What it tells of the actor's work
it reads from the actor's `Pulse`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import structlog

from .codec import encode
from .config import Config
from .identities import heartbeat_identity, unsolicited
from .layout import StateLayout
from .messages import Heartbeat
from .pulse import Pulse
from .sockets import PlainContext, connect_dealer, send

# An actor's child processes are listed anew this often: the list costs milliseconds.
_FAMILY_EVERY_S = 5.0
# What an orphan gets to finish a write; whatever it leaves half done is ignored on the next start.
_ORPHAN_GRACE_S = 1.0
_FASTEST_BEAT_S = 0.02

log = structlog.get_logger()


class HeartbeatThread(threading.Thread):
    """Beats until `stop`. A daemon thread: it never keeps a process alive."""

    def __init__(
        self,
        context: PlainContext,
        config: Config,
        actor: str,
        pulse: Pulse,
        on_orphaned: Callable[[], None],
    ) -> None:
        super().__init__(name=f"{actor}-heartbeat", daemon=True)
        self._context = context
        self._config = config
        self._actor = actor
        self._pulse = pulse
        self._on_orphaned = on_orphaned
        self._parent = os.getppid()
        self._stopping = threading.Event()

    def run(self) -> None:
        address = StateLayout(Path(self._config.state_dir)).actor_socket
        socket = connect_dealer(
            self._context, address, self._config.limits, identity=heartbeat_identity(self._actor)
        )
        family = _Family()
        every_s = max(self._config.daemon.heartbeat_s, _FASTEST_BEAT_S)
        try:
            while not self._stopping.wait(every_s):
                if os.getppid() != self._parent:
                    log.error("actor.orphaned", parent=self._parent)
                    self._on_orphaned()
                    return
                send(socket, encode(unsolicited(self._beat(family))))
        finally:
            socket.close(linger=0)

    def stop(self) -> None:
        """End the thread and wait for it, so that the context can be closed."""
        self._stopping.set()
        self.join()

    def _beat(self, family: "_Family") -> Heartbeat:
        busy = self._pulse.busy()
        return Heartbeat(
            actor=self._actor,
            busy_s=busy.for_s,
            at=busy.at,
            rss_bytes=family.rss_bytes(time.monotonic()),
        )


def end_own_group() -> None:
    """Kill this process and all that it started, after a grace.

    Nothing gentler will do: a child that ignores SIGTERM, as an engine's core may, would stay. The
    supervisor starts each actor as the leader of a group; a process that leads none ends alone.
    """
    time.sleep(_ORPHAN_GRACE_S)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class _Family:
    """Memory of this process and its children, which for a sampler hold the model."""

    def __init__(self) -> None:
        self._self = psutil.Process()
        self._children: list[psutil.Process] = []
        self._listed_at = float("-inf")

    def rss_bytes(self, now: float) -> int:
        if now - self._listed_at >= _FAMILY_EVERY_S:
            with contextlib.suppress(psutil.Error):  # one that ends while it is being listed
                self._children = self._self.children(recursive=True)
            self._listed_at = now
        return sum(_rss_bytes(process) for process in (self._self, *self._children))


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # a child that has ended since it was listed
        return 0
