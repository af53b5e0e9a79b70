"""Futures on their way to the disk: begun before their ids are told, ended before their results are.

A result that cannot be written down is tried again until it can, and its reader hears why it takes so long.
"""

import asyncio
from collections.abc import Callable

from ..bus.crash_points import crash_point
from .future import Future
from .future_journal import FutureJournal
from .future_rows import Begun, Decided, Ended
from .progress import Pause
from .results import Result

_TRY_AGAIN_S = 1.0


class FutureWriting:
    """clock: seconds since the epoch. kept: told of each future whose result is durable."""

    def __init__(
        self, journal: FutureJournal, *, clock: Callable[[], float], kept: Callable[[Future], None]
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._kept = kept
        self._ends = journal.table.last_completion()
        self._closed = False

    def begin(self, future: Future, begun: Begun) -> None:
        future.begun = begun
        self._write_begun(future)

    async def durable(self, future: Future) -> None:
        """Wait until the future's id may be told. Raises StorageFailed: it may not be."""
        if future.begun is None:
            return
        if future.writing is None:  # it could not be written before
            self._write_begun(future)
        assert future.writing is not None
        await asyncio.shield(future.writing)
        crash_point("bridge.acknowledged")

    async def decide(self, future: Future, decided: bytes) -> None:
        """Raises StorageFailed."""
        await self._journal.write(Decided(id=future.id, decided=decided))

    def end(self, future: Future, result: Result) -> None:
        """Write a result down, until that succeeds."""
        if self._closed:
            return
        future.started = True
        future.progress.made.set()
        if future.begun is not None and future.writing is None:
            self._write_begun(future)
        self._ends += 1
        ended = Ended(id=future.id, number=self._ends, result=result, ended_unix_s=self._clock())
        written = self._journal.write(ended)
        written.add_done_callback(lambda done: self._ended(future, ended, done))

    def close(self) -> None:
        """What is not written down by now is the next process's."""
        self._closed = True

    def _write_begun(self, future: Future) -> None:
        assert future.begun is not None
        future.writing = self._journal.write(future.begun)
        future.writing.add_done_callback(future.begun_written)

    def _ended(self, future: Future, ended: Ended, written: "asyncio.Future[None]") -> None:
        refused = written.exception()
        if refused is not None or future.begun is not None:
            future.progress.waiting = Pause(f"its result cannot be written down: {refused}")
            asyncio.get_running_loop().call_later(_TRY_AGAIN_S, self.end, future, ended.result)
            return
        future.result, future.ended_unix_s = ended.result, ended.ended_unix_s
        future.done.set()
        self._kept(future)
