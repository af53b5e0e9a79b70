"""The journal's one writer: a thread that commits all that waits at once (group commit).

What a turn of the loop submits is durable together with whatever came while the last commit was under
way, for one wait for the disk. Results come back in the order of submission.
"""

import queue
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from ...bus.errors import StorageFailed
from .records import Record
from .store import Store

log = structlog.get_logger()

# A record, and why the journal did not take it; "" when it is durable.
Done = tuple[Record, str]


class Writer:
    """woken: readable when `take_done` has something."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._waiting: queue.SimpleQueue[Sequence[Record] | None] = queue.SimpleQueue()
        self._done: deque[Done] = deque()
        self.woken, self._waker = socket.socketpair()
        self.woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> None:
        self._waiting.put(records)

    def take_done(self) -> list[Done]:
        with suppress(BlockingIOError):
            while self.woken.recv(4096):
                pass
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        """Write what was submitted, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        store = Store(self._file)
        try:
            while (batch := self._next()) is not None:
                self._commit(store, batch)
                with suppress(BlockingIOError):  # it is full, so it wakes already
                    self._waker.send(b"\0")
        finally:
            store.close()

    def _next(self) -> list[Record] | None:
        """All that waits, at least one thing; None at the end."""
        first = self._waiting.get()
        if first is None:
            return None
        batch = [*first]
        with suppress(queue.Empty):
            while (more := self._waiting.get_nowait()) is not None:
                batch += more
            self._waiting.put(None)
        return batch

    def _commit(self, store: Store, batch: list[Record]) -> None:
        try:
            store.commit(batch)
        except StorageFailed as error:
            log.warning("journal.not_written", records=len(batch), reason=error.message)
            self._done += [(record, error.message) for record in batch]
        else:
            self._done += [(record, "") for record in batch]
