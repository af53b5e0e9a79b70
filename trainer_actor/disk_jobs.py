"""What takes the disk its time, on a thread of its own, so that nobody's save holds up another's pass.

One job runs at a time. A job touches files and what was copied for it, and nothing of the loop's: what
it found out it hands back as a function, which the loop calls. Whoever submits a job lets its adapter
do nothing else until then. What nobody waits for (a snapshot) is begun `behind` a job, one at a time, so it
holds up at most the next.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from ..bus.ids import AdapterId
from ..bus.messages import Message
from .queues import Queued

Found = TypeVar("Found")
# Runs on the thread; what it returns runs in the loop and makes the reply. Both may raise LoractlError.
Job = Callable[[], Callable[[], Message]]

# How long the loop may sleep while a job runs: it learns of the end by looking.
LOOK_S = 0.002


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
        """Wait for the job's end; milliseconds for which it kept the thread."""
        # Safe to read then: the thread wrote it before the future was done.
        wait([self.future])
        return self.timed.ms

    def outcome(self) -> Message:
        """Wait for the job and make the reply. Raises what either raises."""
        return self.future.result()()


class DiskJobs:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self.under_way: UnderWay | None = None

    @property
    def adapter(self) -> AdapterId | None:
        """Whose job is under way."""
        return self.under_way.adapter if self.under_way is not None else None

    def submit(self, queued: Queued, later: Later) -> None:
        assert self.under_way is None, "one job at a time"
        timed = _Timed(later.job)
        self.under_way = UnderWay(queued, timed, self._thread.submit(timed))

    def take_done(self, *, wait: bool = False) -> UnderWay | None:
        """The job that has ended, once; with `wait` the one under way, when it ends."""
        job = self.under_way
        if job is None or not (wait or job.future.done()):
            return None
        self.under_way = None
        return job

    def behind(self, work: Callable[[], Found]) -> "Future[Found]":
        """Run it on the thread, after the job that is under way."""
        return self._thread.submit(work)

    def close(self) -> None:
        self._thread.shutdown()
