"""What takes the disk its time, on a thread of its own, so that nobody's save holds up another's pass.

One job runs at a time. A job touches files and what was copied for it, and nothing of the loop's: what
it found out it hands back as a function, which the loop calls. Whoever submits a job lets its adapter
do nothing else until then. What nobody waits for (a snapshot) is begun `behind` a job, one at a time, so it
holds up at most the next.

Whether the thread gets on shows in a strand of its own. The loop that waits for it does not stand still.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from ..bus.ids import AdapterId
from ..bus.messages import Message
from ..bus.pulse import Strand
from .queues import Queued

Found = TypeVar("Found")
# Runs on the thread; what it returns runs in the loop and makes the reply. Both may raise LoractlError.
Job = Callable[[], Callable[[], Message]]

# How long the loop may sleep while a job runs: it learns of the end by looking.
LOOK_S = 0.002
# How often a loop that waits for the thread says that it lives.
_SAY_S = 1.0


@dataclass(frozen=True, slots=True)
class Later:
    """An operation's outcome, once its job has run."""

    job: Job


class _Timed:
    """A job; `ms`, once it has ended or failed, is how long it kept the thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.ms = 0.0

    def __call__(self) -> Callable[[], Message]:
        begin = time.perf_counter()
        try:
            return self._job()
        finally:
            self.ms = (time.perf_counter() - begin) * 1000


@dataclass(frozen=True, slots=True)
class UnderWay:
    queued: Queued
    timed: _Timed
    future: "Future[Callable[[], Message]]"

    @property
    def adapter(self) -> AdapterId:
        return self.queued.operation.adapter

    def kept_ms(self) -> float:
        """Of a job that has ended: milliseconds for which it kept the thread."""
        assert self.future.done()  # the thread wrote it before
        return self.timed.ms

    def outcome(self) -> Message:
        """Of a job that has ended: make the reply. Raises what either raises."""
        return self.future.result()()


class DiskJobs:
    """alive: says that the loop gets on. strand: the thread's."""

    def __init__(self, alive: Callable[[], None], strand: Strand) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._alive = alive
        self._strand = strand
        self.under_way: UnderWay | None = None

    @property
    def adapter(self) -> AdapterId | None:
        """Whose job is under way."""
        return self.under_way.adapter if self.under_way is not None else None

    def submit(self, queued: Queued, later: Later) -> None:
        assert self.under_way is None, "one job at a time"
        timed = _Timed(later.job)
        operation = queued.operation
        future = self._on_thread(timed, f"the {operation.kind} of {operation.adapter} on the disk")
        self.under_way = UnderWay(queued, timed, future)

    def take_done(self, *, wait: bool = False) -> UnderWay | None:
        """The job that has ended, once; with `wait` the one under way, when it ends."""
        job = self.under_way
        if job is None or not (wait or job.future.done()):
            return None
        self.wait_for(job.future)
        self.under_way = None
        return job

    def behind(self, work: Callable[[], Found], what: str) -> "Future[Found]":
        """Run it on the thread, after the job that is under way. what: in words."""
        return self._on_thread(work, what)

    def wait_for(self, future: "Future[Found]") -> None:
        """Wait for the end of what the thread does."""
        while wait([future], timeout=_SAY_S).not_done:
            self._alive()

    def close(self) -> None:
        self._thread.shutdown()

    def _on_thread(self, work: Callable[[], Found], what: str) -> "Future[Found]":
        def watched() -> Found:
            self._strand.turn(what)
            try:
                return work()
            finally:
                self._strand.rest()

        return self._thread.submit(watched)
