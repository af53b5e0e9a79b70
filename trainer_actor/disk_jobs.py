"""What takes the disk its time, on a thread of its own, so that nobody's save holds up another's pass.

One job runs at a time. A job touches files and what was copied for it, and nothing of the loop's: what
it found out it hands back as a function, which the loop calls. Whoever submits a job lets its adapter
do nothing else until then.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..bus.ids import AdapterId
from ..bus.messages import Message
from .queues import Queued

# Runs on the thread; what it returns runs in the loop and makes the reply. Both may raise LoractlError.
Job = Callable[[], Callable[[], Message]]

# How long the loop may sleep while a job runs: it learns of the end by looking.
LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Later:
    """An operation's outcome, once its job has run."""

    job: Job


@dataclass(frozen=True, slots=True)
class UnderWay:
    queued: Queued
    future: "Future[Callable[[], Message]]"

    @property
    def adapter(self) -> AdapterId:
        return self.queued.operation.adapter

    def outcome(self) -> Message:
        """Wait for the job and make the reply. Raises what either raises."""
        return self.future.result()()


class DiskJobs:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self.under_way: UnderWay | None = None

    def submit(self, queued: Queued, later: Later) -> None:
        assert self.under_way is None, "one job at a time"
        self.under_way = UnderWay(queued, self._thread.submit(later.job))

    def take_done(self, *, wait: bool = False) -> UnderWay | None:
        """The job that has ended, once; with `wait` the one under way, when it ends."""
        job = self.under_way
        if job is None or not (wait or job.future.done()):
            return None
        self.under_way = None
        return job

    def close(self) -> None:
        self._thread.shutdown()
