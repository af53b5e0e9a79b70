"""Changes that are answered at once and made once, however often a lost reply makes the client ask.

The SDK repeats such a request under the same X-Idempotency-Key until it hears an answer. Without this,
the repeat of a deletion would read that there is nothing to delete. What is numbered by its body
(training, sampling, sessions) needs none of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from ..bus.ids import TenantId

# Whose request, what it asks for, and its key: a key that is used for something else is another one.
_Key = tuple[TenantId, str, str]

# Repeats come within seconds, and an entry is small.
_KEPT = 4096


class Repeats:
    def __init__(self) -> None:
        self._tasks: OrderedDict[_Key, asyncio.Task[str]] = OrderedDict()

    async def once(
        self, tenant: TenantId, what: str, key: str, change: Callable[[], Coroutine[Any, Any, str]]
    ) -> str:
        """Make a change, or return what it came to when it was made under this key; "" is no key.

        Raises:
            LoractlError: the change's own. The next request tries again.
        """
        if not key:
            return await change()
        known = self._tasks.get((tenant, what, key))
        if known is None:
            known = self._started((tenant, what, key), change)
        # Shielded: a client that went away asks again.
        return await asyncio.shield(known)

    def _started(self, key: _Key, change: Callable[[], Coroutine[Any, Any, str]]) -> "asyncio.Task[str]":
        task = self._tasks[key] = asyncio.create_task(change())

        def forget_failed(ended: "asyncio.Task[str]") -> None:
            if (ended.cancelled() or ended.exception() is not None) and self._tasks.get(key) is ended:
                del self._tasks[key]

        task.add_done_callback(forget_failed)
        while len(self._tasks) > _KEPT:
            self._tasks.popitem(last=False)
        return task
