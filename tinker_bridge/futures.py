"""Work under way and its results: a POST starts work and returns an id, a poll waits for its result.

Owns who may read which, and how long a result can be read again. The same key with the
same content joins the first future and runs nothing twice. A future runs as a task of the bridge's
loop; what it does, and what its result looks like, is its starter's.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog

from ..bus.errors import (
    ActorStopping,
    Internal,
    LoractlError,
    RequestConflict,
    ResultExpired,
    ResultNotFound,
)
from ..bus.ids import TenantId
from ..bus.messages import WaitCause
from .completions import Completion, Completions
from .future_ids import FutureIds

log = structlog.get_logger()

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

# What an ended future costs beside its result (measured).
_ENTRY_BYTES = 1700

# Names what a future is for, from ids in the request's body: the same key is the same work.
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished future's answer, ready to be sent. failed: it says why the work was not done.

    to_json: makes JSON of a body that is protobuf, for clients that do not read that.
    """

    body: bytes
    media_type: str = JSON
    failed: bool = False
    to_json: Callable[[bytes], bytes] | None = None


class Waited(Protocol):
    """What of a bus request under way is looked at (`AsyncPending`)."""

    @property
    def waits_for(self) -> str: ...

    @property
    def cause(self) -> WaitCause: ...


@dataclass(slots=True)
class Progress:
    """What a future's work says about itself while it runs. waiting: a bus request it waits on."""

    waiting: Waited | None = None

    @property
    def cause(self) -> WaitCause:
        """What kind of reason it has to wait."""
        return self.waiting.cause if self.waiting is not None else "others"

    @property
    def reason(self) -> str:
        """What it waits for, in words; empty when it is being worked on."""
        return self.waiting.waits_for if self.waiting is not None else ""


Work = Callable[[Progress], Awaitable[Result]]


@dataclass(slots=True, eq=False)
class Future:
    """scope: what ends it when it ends itself, such as a session; empty for nothing. group: where its
    completion is announced, see `completions`."""

    id: str
    tenant: TenantId
    key: Key
    digest: bytes
    scope: str
    group: Key
    progress: Progress = field(default_factory=Progress)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    result: Result | None = None
    ended_at: float = 0.0
    task: "asyncio.Task[Result] | None" = None


class Futures:
    """kept_bytes, kept_s: bounds on results that can be read again."""

    def __init__(self, *, secret: bytes, kept_bytes: int, kept_s: float, clock: Callable[[], float]) -> None:
        self._ids = FutureIds(secret)
        self._kept_bytes = kept_bytes
        self._kept_s = kept_s
        self._clock = clock
        self._futures: dict[str, Future] = {}
        self._by_key: dict[tuple[TenantId, Key], Future] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()  # id to bytes, oldest first
        self._ended_bytes = 0
        self._completions = Completions(self._futures)
        self._under_way: dict[str, set[Future]] = {}  # by scope
        self._closed = False
        self._parting: LoractlError | None = None

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._futures) - len(self._ended)

    def known(self, tenant: TenantId, key: Key, digest: bytes) -> Future | None:
        """The future of this key, if there is one.

        Raises:
            RequestConflict: the key was used for something else.
        """
        future = self._by_key.get((tenant, key))
        if future is not None and future.digest != digest:
            raise RequestConflict(
                f"{' '.join(key)} was used before for another request: its first outcome stands; "
                "take the next number"
            )
        return future

    def start(
        self, tenant: TenantId, key: Key, digest: bytes, work: Work, *, scope: str = "", group: Key = ()
    ) -> Future:
        """Start work under a key, or join what was started under it before.

        Raises:
            RequestConflict: as `known`.
        """
        if (known := self.known(tenant, key, digest)) is not None:
            return known
        future = Future(self._ids.new(tenant), tenant, key, digest, scope, group)
        self._futures[future.id] = future
        self._by_key[tenant, key] = future
        if scope:
            self._under_way.setdefault(scope, set()).add(future)
        future.task = asyncio.create_task(_outcome(future, work))
        future.task.add_done_callback(lambda task: self._end(future, task))
        return future

    async def wait(self, tenant: TenantId, future_id: str, timeout_s: float) -> Result | Progress:
        """The result; or, when there is none yet after timeout_s, what it waits for.

        Raises:
            ResultNotFound: this tenant never got such an id.
            ResultExpired: it did, and the result is no longer kept.
            ActorStopping: there will be none from this process.
        """
        future = self.owned(tenant, future_id)
        if future.result is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await future.done.wait()
            except TimeoutError:
                return future.progress
        if future.result is None:
            raise ActorStopping("the server is stopping: ask again when it runs")
        return future.result

    def owned(self, tenant: TenantId, future_id: str) -> Future:
        """Raises ResultNotFound, ResultExpired: as `wait`."""
        future = self._futures.get(future_id)
        if future is not None and future.tenant == tenant:
            return future
        if future is None and self._ids.given_to(tenant, future_id):
            raise ResultExpired("this result is no longer kept: send the request again")
        raise ResultNotFound("there is no such request id")

    def cancel(self, tenant: TenantId, future_id: str) -> None:
        """End a future's work; one that has ended stays as it is. Raises as `owned`."""
        future = self.owned(tenant, future_id)
        if future.task is not None:
            future.task.cancel()

    def cancel_scope(self, scope: str) -> None:
        """End the work of everything that belongs to a scope."""
        for future in self._under_way.get(scope, ()):
            if future.task is not None:
                future.task.cancel()

    def drop(self, tenant: TenantId, future_ids: list[str]) -> None:
        """Let go of results that their reader has; ids that are not theirs or not ended are left."""
        for future_id in future_ids:
            future = self._futures.get(future_id)
            if future is not None and future.tenant == tenant and future_id in self._ended:
                self._forget(future_id)

    async def completions(self, group: Key, after: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Those of a group after a number, waiting for the first; and the number to go on from."""
        return await self._completions.after(group, after, timeout_s)

    def close(self, parting: LoractlError | None = None) -> None:
        """End all work. Nobody is told of an outcome: who asks again after a restart is told the truth.

        parting: what the work of training runs ends with all the same, when no restart is meant. Clients
        of samples ask again by themselves, and are served when the service is back.
        """
        self._closed = True
        self._parting = parting
        for future in self._futures.values():
            if future.task is not None:
                future.task.cancel()

    def _end(self, future: Future, task: "asyncio.Task[Result]") -> None:
        future.task = None
        future.progress.waiting = None
        if future.scope:
            self._leave_scope(future)
        if not task.cancelled():
            self._keep(future, task.result())
        elif self._parting is not None and not future.group:
            self._keep(future, failed_result(self._parting))
        elif not self._closed:
            self._keep(future, failed_text("the request was cancelled", "user"))
        future.done.set()

    def _leave_scope(self, future: Future) -> None:
        siblings = self._under_way[future.scope]
        siblings.remove(future)
        if not siblings:
            del self._under_way[future.scope]

    def _keep(self, future: Future, result: Result) -> None:
        future.result = result
        future.ended_at = self._clock()
        self._ended[future.id] = _ENTRY_BYTES + len(result.body)
        self._ended_bytes += self._ended[future.id]
        if future.group:
            self._completions.add(future.group, future.id, failed=result.failed, size_bytes=len(result.body))
        self.forget_old(keep=future.id)

    def forget_old(self, *, keep: str = "") -> None:
        """Let go of the oldest results until the bounds hold; `keep` was not read yet."""
        now = self._clock()
        while self._ended:
            oldest = next(iter(self._ended))
            if oldest == keep:
                return
            young = now - self._futures[oldest].ended_at < self._kept_s
            if young and self._ended_bytes <= self._kept_bytes:
                return
            self._forget(oldest)

    def _forget(self, future_id: str) -> None:
        self._ended_bytes -= self._ended.pop(future_id)
        future = self._futures.pop(future_id)
        self._by_key.pop((future.tenant, future.key), None)
        if future.group:
            self._completions.tidy(future.group)


async def _outcome(future: Future, work: Work) -> Result:
    try:
        return await work(future.progress)
    except LoractlError as error:
        return failed_result(error)
    except Exception:  # the loop's boundary: the client must hear of every bug
        log.exception("future.crashed", key=future.key, tenant=future.tenant)
        return failed_result(Internal("the bridge failed on this request; its log says why"))


def json_result(fields: object) -> Result:
    return Result(msgspec.json.encode(fields))


def failed_result(error: LoractlError) -> Result:
    return failed_text(error.message, error.fault)


def failed_text(message: str, category: str) -> Result:
    return Result(msgspec.json.encode({"error": message, "category": category}), failed=True)
