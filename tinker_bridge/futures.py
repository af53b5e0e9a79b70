"""Work under way and its results: a POST starts work and returns an id, a poll waits for its result.

Owns who may read which, and how long a result can be read again. The same key with the same content joins
the first future and runs nothing twice. An id is told once its request is durable, a result once that is:
whatever was told is there after a restart, and what had not ended then is started again (`run_again`).
A future runs as a task of the bridge's loop; what it does, and what its result looks like, is its starter's.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from ..bus.errors import (
    ActorStopping,
    LoractlError,
    RequestConflict,
    ResultExpired,
    ResultNotFound,
)
from ..bus.ids import TenantId
from .completions import Completion, Completions
from .future import Future, outcome
from .future_ids import FutureIds, Key, Origin
from .future_journal import FutureJournal
from .future_rows import Aged, Asked, Begun, Dropped, Kept, Tried
from .future_writing import FutureWriting
from .progress import Pause, Progress, Work
from .recent import Recent
from .results import Result, failed_result, failed_text

log = structlog.get_logger()

# Results in memory; all of them are on disk.
_RECENT_BYTES = 32 * 2**20

_CANCELLED = failed_text("the request was cancelled", "user", "aborted")


class Futures:
    """kept_bytes, kept_s: bounds on results that can be read again; those of live sessions stay longer than
    kept_s. clock: seconds since the epoch. gone: set when the daemon is, so that this process should end."""

    def __init__(
        self,
        journal: FutureJournal,
        *,
        secret: bytes,
        kept_bytes: int,
        kept_s: float,
        clock: Callable[[], float],
        recent_bytes: int = _RECENT_BYTES,
    ) -> None:
        self.gone = asyncio.Event()
        self._ids = FutureIds(secret)
        self._secret = secret
        self._journal = journal
        self._kept_bytes = kept_bytes
        self._kept_s = kept_s
        self._clock = clock
        self._open: dict[str, Future] = {}
        self._recent = Recent(recent_bytes)
        self._read: set[str] = set()  # since they were written down the last time
        self._completions = Completions(journal.table)
        self._writing = FutureWriting(journal, clock=clock, kept=self._kept)
        self._closed = False
        for kept in journal.table.unfinished():
            self._take_up(kept)
        self._again = {*self._open}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._open)

    @property
    def closed(self) -> bool:
        """Whether this process ends, and what is under way goes on in the next one."""
        return self._closed

    @property
    def running_again(self) -> bool:
        """Whether anything that an earlier process left unfinished is still under way."""
        return not self._again.isdisjoint(self._open)

    def origin(self, *path: str) -> Origin:
        """Of names that belong to no one future."""
        return Origin(self._secret, path)

    def known(self, tenant: TenantId, key: Key, digest: bytes) -> Future | None:
        """The future of this key, if there is one.

        Raises:
            RequestConflict: the key was used for something else.
        """
        future = self._find(self._ids.of(tenant, key))
        if future is not None and future.digest != digest:
            raise RequestConflict(
                f"{' '.join(key)} was used before for another request: its first outcome stands; "
                "take the next number"
            )
        return future

    def has_ended(self, tenant: TenantId, key: Key) -> bool:
        """Whether the future of this key has its outcome, also where that is no longer kept."""
        future = self._find(self._ids.of(tenant, key))
        return future is not None and (future.expired or future.result is not None)

    def start(
        self,
        asked: Asked,
        key: Key,
        digest: bytes,
        work: Work,
        *,
        session: str = "",
        scope: str = "",
        group: Key = (),
    ) -> Future:
        """Start work under a key, or join what was started under it before.

        session: while it lives, the result is kept. scope: what ends the work when it ends itself, such as a
        session; empty for nothing. group: where its completion is announced, see `completions`.

        Raises:
            RequestConflict: as `known`.
        """
        future = self.known(asked.tenant, key, digest)
        if future is None:
            future = self._new(asked, key, digest, session, scope, group)
        elif future.expired:
            future.expired = False
            self._admit(future)
        if not future.started:
            self._run(future, work)
        return future

    async def durable(self, future: Future) -> None:
        """Wait until the future's id may be told. Raises StorageFailed: it may not be."""
        await self._writing.durable(future)

    async def wait(self, tenant: TenantId, future_id: str, timeout_s: float) -> Result | Progress:
        """The result; or, when there is none yet after timeout_s, what it waits for.

        Raises:
            ResultNotFound: this tenant never got such an id.
            ResultExpired: it did, and the result is no longer kept.
            ActorStopping: there will be none from this process.
        """
        future = self.owned(tenant, future_id)
        if not future.done.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await future.done.wait()
            except TimeoutError:
                return future.progress
        if future.result is None:
            raise ActorStopping("the server is stopping: ask again when it runs")
        self._read.add(future_id)
        return future.result

    def owned(self, tenant: TenantId, future_id: str) -> Future:
        """Raises ResultNotFound, ResultExpired: as `wait`."""
        future = self._find(future_id)
        if future is not None and future.tenant == tenant and not future.expired:
            return future
        if (future is None or future.expired) and self._ids.given_to(tenant, future_id):
            raise ResultExpired("this result is no longer kept: send the request again")
        raise ResultNotFound("there is no such request id")

    def cancel(self, tenant: TenantId, future_id: str) -> None:
        """End a future's work; one that has ended stays as it is. Raises as `owned`."""
        self._cancel(self.owned(tenant, future_id))

    def cancel_scope(self, scope: str) -> None:
        """End the work of everything that belongs to a scope."""
        for future in [each for each in self._open.values() if each.scope == scope]:
            self._cancel(future)

    async def drop(self, tenant: TenantId, future_ids: Iterable[str]) -> None:
        """Let go of results that their reader has; ids that are not theirs or not ended are left."""
        given = [id_ for id_ in future_ids if self._ids.given_to(tenant, id_)]
        ids = tuple(id_ for id_ in given if id_ not in self._open)
        if ids:
            await self._journal.write(Dropped(tenant=tenant, ids=ids))
            self._recent.drop(tenant, ids)

    async def completions(self, group: Key, after: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Those of a group after a number, waiting for the first; and the number to go on from."""
        return await self._completions.after(group, after, timeout_s)

    async def forget_old(self, live_sessions: Iterable[str]) -> None:
        """Let go of results until the bounds hold, see `future_ageing`. Raises StorageFailed."""
        before = self._clock() - self._kept_s
        live = frozenset(live_sessions)
        read = tuple(self._read)
        await self._journal.write(
            Aged(before_unix_s=before, live_sessions=tuple(live), most_bytes=self._kept_bytes, read=read)
        )
        self._read.difference_update(read)
        self._recent.age(before, live)

    def unfinished(self) -> list[Future]:
        """What an earlier process left that nobody has started here yet, in the order in which it came."""
        return [future for future in self._open.values() if not future.started]

    def tried(self, futures: Iterable[Future], attempts: int) -> "asyncio.Future[None]":
        """Write down how often each was tried. Done when that is durable; with StorageFailed if it cannot be."""
        return self._journal.write(Tried(ids=tuple(each.id for each in futures), attempts=attempts))

    def asked(self, future_id: str) -> Asked:
        """The request of an unfinished future of an earlier process."""
        return self._journal.table.asked(future_id)

    def fail(self, future_id: str, error: LoractlError) -> None:
        """End a future whose work could not even be started again."""
        future = self._open.get(future_id)
        if future is not None and not future.started:
            self._writing.end(future, failed_result(error))

    def close(self) -> None:
        """End all work. Nobody is told of an outcome: the next process goes on."""
        self._closed = True
        self._writing.close()
        for future in self._open.values():
            if future.task is not None:
                future.task.cancel()
            future.done.set()

    # --- starting and ending ---------------------------------------------------------------------

    def _new(self, asked: Asked, key: Key, digest: bytes, session: str, scope: str, group: Key) -> Future:
        begun = Begun(
            id=self._ids.of(asked.tenant, key),
            tenant=asked.tenant,
            key=key,
            digest=digest,
            session=session,
            scope=scope,
            group=group,
            asked=asked,
            began_unix_s=self._clock(),
        )
        future = Future(begun.id, asked.tenant, key, digest, session, scope, group)
        self._admit(future)
        self._writing.begin(future, begun)
        return future

    def _take_up(self, kept: Kept) -> None:
        future = Future.of(kept)
        self._admit(future)
        future.progress.waiting = Pause("the server was started again and takes up what was under way")

    def _admit(self, future: Future) -> None:
        self._open[future.id] = future
        future.progress.origin = Origin(self._secret, ("work", future.tenant, *future.key))
        future.progress.write = lambda decided: self._writing.decide(future, decided)

    def _run(self, future: Future, work: Work) -> None:
        future.progress.waiting = None
        future.started = True
        if self._closed:
            return
        future.task = asyncio.create_task(outcome(future, work))
        future.task.add_done_callback(lambda task: self._end(future, task))

    def _cancel(self, future: Future) -> None:
        if future.task is not None:
            future.task.cancel()
        elif not future.started:
            self._writing.end(future, _CANCELLED)

    def _end(self, future: Future, task: "asyncio.Task[Result | None]") -> None:
        future.task = None
        future.progress.waiting = None
        result = _CANCELLED if task.cancelled() else task.result()
        if self._closed:
            return  # the next process runs it again
        if result is None:
            self.gone.set()
            return
        self._writing.end(future, result)

    def _kept(self, future: Future) -> None:
        del self._open[future.id]
        self._recent.add(future)
        if future.group:
            self._completions.added(future.group)

    def _find(self, future_id: str) -> Future | None:
        if (known := self._open.get(future_id) or self._recent.find(future_id)) is not None:
            return known
        kept = self._journal.table.find(future_id)
        if kept is None or (kept.result is None and not kept.expired):
            return None
        future = Future.of(kept)
        if not future.expired:
            self._recent.add(future)
        return future
