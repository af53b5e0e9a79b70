"""Changes that are answered at once and made once, however often a lost reply makes the client ask.

The SDK repeats such a request under the same X-Idempotency-Key until it hears an answer. Without this,
the repeat of a deletion would read that there is nothing to delete. What is numbered by its body
(training, sampling, sessions) needs none of it. What was begun and what was done is written down, so that
a repeat finds it after a restart, too.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ..bus.errors import CheckpointExists, CheckpointNotFound
from ..bus.ids import TenantId
from .future_journal import FutureJournal
from .future_rows import Change, Unchanged

# Whose request, what it asks for, and its key: a key that is used for something else is another one.
_Key = tuple[TenantId, str, str]


class Repeats:
    """clock: seconds since the epoch."""

    def __init__(self, journal: FutureJournal, *, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    async def once(
        self,
        tenant: TenantId,
        what: str,
        key: str,
        *,
        check: Callable[[], object],
        change: Callable[[], Awaitable[None]],
    ) -> None:
        """Make a change, unless it was made under this key before; "" is no key.

        check: raises when the change cannot be made. Not asked where it was begun before: what stands in its
        way then (nothing to delete any more, say) is that it was made.

        Raises:
            LoractlError: the change's own. The next request tries again.
        """
        if not key:
            check()
            await change()
            return
        task = self._tasks.get((tenant, what, key))
        if task is None:
            task = self._started((tenant, what, key), check, change)
        # Shielded: a client that went away asks again.
        await asyncio.shield(task)

    def _started(
        self, key: _Key, check: Callable[[], object], change: Callable[[], Awaitable[None]]
    ) -> "asyncio.Task[None]":
        task = self._tasks[key] = asyncio.create_task(self._made(key, check, change))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task

    async def _made(
        self, key: _Key, check: Callable[[], object], change: Callable[[], Awaitable[None]]
    ) -> None:
        known = self._journal.table.change(*key)
        if known is not None and known.done:
            return
        if known is None:
            check()
            await self._write(key, done=False)
        try:
            await change()
        except (CheckpointNotFound, CheckpointExists):
            if known is None:
                tenant, what, name = key
                await self._journal.write(Unchanged(tenant=tenant, what=what, key=name))
                raise
        await self._write(key, done=True)

    def _write(self, key: _Key, *, done: bool) -> "asyncio.Future[None]":
        tenant, what, name = key
        row = Change(tenant=tenant, what=what, key=name, done=done, unix_s=self._clock())
        return self._journal.write(row)
