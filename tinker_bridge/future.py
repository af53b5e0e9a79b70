"""One future: what it is for, how far it is, and what its work comes to."""

import asyncio
from dataclasses import dataclass, field
from typing import Self

import structlog

from ..bus.errors import DaemonGone, DaemonNotRunning, Internal, LoractlError
from ..bus.ids import TenantId
from .future_ids import Key
from .future_rows import Begun, Kept
from .progress import Progress, Work
from .results import Result, failed_result

log = structlog.get_logger()

# Of every future that has ended: thousands are remembered, and nothing of their work is needed.
_OVER = Progress()
_DONE = asyncio.Event()
_DONE.set()


@dataclass(slots=True, eq=False)
class Future:
    """begun: its row while that is not durable; writing: its way there. started: its work runs here, or has
    ended; what an earlier process left is not, until somebody starts it again. done: its result is durable,
    or there will be none from this process. expired: its result was let go of; sent again, it is started again.
    """

    id: str
    tenant: TenantId
    key: Key
    digest: bytes
    session: str
    scope: str
    group: Key
    begun: Begun | None = None
    writing: "asyncio.Future[None] | None" = None
    started: bool = False
    progress: Progress = field(default_factory=Progress)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    result: Result | None = None
    ended_unix_s: float = 0.0
    attempts: int = 0
    expired: bool = False
    task: "asyncio.Task[Result | None] | None" = None

    @classmethod
    def of(cls, kept: Kept) -> Self:
        """As an earlier process left it, or as it ended."""
        future = cls(kept.id, kept.tenant, kept.key, kept.digest, kept.session, kept.scope, kept.group)
        future.attempts, future.expired = kept.attempts, kept.expired
        future.progress.decided = kept.decided
        if kept.result is not None:
            future.started, future.result, future.ended_unix_s = True, kept.result, kept.ended_unix_s
            future.done.set()
        return future

    def let_go_of_work(self) -> None:
        """It has its result, and whoever waited was told."""
        self.progress, self.done = _OVER, _DONE

    def begun_written(self, written: "asyncio.Future[None]") -> None:
        self.writing = None
        if written.exception() is None:
            self.begun = None


async def outcome(future: Future, work: Work) -> Result | None:
    """None: the daemon is gone, and with it whatever the work had to ask."""
    try:
        return await work(future.progress)
    except (DaemonGone, DaemonNotRunning):
        return None
    except LoractlError as error:
        return failed_result(error)
    except Exception:  # the loop's boundary: the client must hear of every bug
        log.exception("future.crashed", key=future.key, tenant=future.tenant)
        return failed_result(Internal("the bridge failed on this request; its log says why"))
