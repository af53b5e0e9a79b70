"""The futures' file as the bridge's loop uses it: reads at once, writes by a thread that commits in groups.

Whatever waits when the thread has written goes into one commit: one wait for the disk for all of it. The
loop hears in the order in which it asked.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from ..bus.errors import StorageFailed
from .future_rows import Begun, Row, Settle
from .future_table import FutureTable

log = structlog.get_logger()

_TOLD_AT_ONCE = 32


class FutureJournal:
    """table: for reading only; sees everything that was committed."""

    def __init__(self, file: Path, *, first: Callable[[], None] = lambda: None) -> None:
        """Call it inside the running loop. first: called in the thread before each commit; makes durable what rows
        may speak of, or raises StorageFailed.

        Raises:
            StorageFailed: the file cannot be opened.
        """
        self.table = FutureTable(file)
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[Row | Settle | None] = queue.SimpleQueue()
        # In the order of submission, as the results come: why a row was not written, "" when it is durable.
        self._asked: deque[asyncio.Future[None]] = deque()
        self._done: deque[str] = deque()
        self._writing = FutureTable(file)
        self._first = first
        self._telling = False
        self._thread = threading.Thread(target=self._run, name="futures", daemon=True)
        self._thread.start()

    def write(self, row: Row | Settle) -> "asyncio.Future[None]":
        """Done when the row is durable; with StorageFailed when it could not be written."""
        written: asyncio.Future[None] = self._loop.create_future()
        # Whoever does not wait for it has nothing to hear.
        written.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._asked.append(written)
        self._waiting.put(row)
        return written

    def close(self) -> None:
        """Write what was submitted, then end."""
        self._waiting.put(None)
        self._thread.join()
        self._tell(len(self._done))
        self.table.close()

    def _take_done(self) -> None:
        """The thread has written something: begin to tell, unless that is under way."""
        if not self._telling:
            self._tell_some()

    def _tell_some(self) -> None:
        """Then others have their turn: behind each may be a poll that wakes up."""
        self._tell(min(_TOLD_AT_ONCE, len(self._done)))
        self._telling = bool(self._done)
        if self._telling:
            self._loop.call_soon(self._tell_some)

    def _tell(self, count: int) -> None:
        for _ in range(count):
            refused, written = self._done.popleft(), self._asked.popleft()
            if written.cancelled():
                continue
            if refused:
                written.set_exception(StorageFailed(refused))
            else:
                written.set_result(None)

    # --- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._take_in(batch)
                # Closing, the loop looks by itself; it may even have ended.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._take_done)
        finally:
            self._writing.close()

    def _next(self) -> list[Row | Settle] | None:
        """All that waits, at least one thing; None at the end."""
        first = self._waiting.get()
        if first is None:
            return None
        batch: list[Row | Settle] = [first]
        with suppress(queue.Empty):
            while (more := self._waiting.get_nowait()) is not None:
                batch.append(more)
            self._waiting.put(None)
        return batch

    def _take_in(self, batch: Sequence[Row | Settle]) -> None:
        unsettled = self._tried(self._first)
        rows = [row for row in batch if not isinstance(row, Settle)]
        refused = unsettled or self._commit(rows)
        still = refused
        if refused:
            log.warning("futures.not_written", rows=len(rows), reason=refused)
            # New requests can be refused; what came of those before needs less room.
            others = [row for row in rows if not isinstance(row, Begun)]
            if not unsettled and 0 < len(others) < len(rows):
                still = self._commit(others)
        for row in batch:
            outcome = unsettled if isinstance(row, Settle) else refused if isinstance(row, Begun) else still
            self._done.append(outcome)

    def _commit(self, rows: Sequence[Row]) -> str:
        return self._tried(lambda: self._writing.commit(rows)) if rows else ""

    def _tried(self, work: Callable[[], None]) -> str:
        """Why it was not possible; "" when it is durable."""
        try:
            work()
        except StorageFailed as error:
            return error.message
        except Exception:  # the thread's boundary: a bug costs one commit, and nobody waits for ever
            log.exception("futures.hit_a_bug")
            return "loractl has a bug here; the bridge's log has the details"
        return ""
