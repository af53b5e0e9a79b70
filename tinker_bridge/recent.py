"""Results that were read or made lately, in memory; all of them are on disk."""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from ..bus.ids import TenantId
from .future import Future

# What an ended future costs beside its result (measured).
ENTRY_BYTES = 1700


class Recent:
    """most_bytes: beyond it, those that were asked for the longest ago go; the newest stays."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._futures: OrderedDict[str, Future] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._futures)

    def find(self, future_id: str) -> Future | None:
        future = self._futures.get(future_id)
        if future is not None:
            self._futures.move_to_end(future_id)
        return future

    def add(self, future: Future) -> None:
        """One that has ended, and whose result is durable."""
        future.let_go_of_work()
        self._futures[future.id] = future
        self._size_bytes += _weight(future)
        while self._size_bytes > self._most_bytes and len(self._futures) > 1:
            self._forget(next(iter(self._futures)))

    def drop(self, tenant: TenantId, future_ids: Iterable[str]) -> None:
        for future_id in future_ids:
            if (future := self._futures.get(future_id)) is not None and future.tenant == tenant:
                self._forget(future_id)

    def age(self, before_unix_s: float, live_sessions: Collection[str]) -> None:
        """Let go of what ended before, but for those of live sessions."""
        old = [
            id_
            for id_, future in self._futures.items()
            if future.ended_unix_s < before_unix_s and future.session not in live_sessions
        ]
        for id_ in old:
            self._forget(id_)

    def _forget(self, future_id: str) -> None:
        self._size_bytes -= _weight(self._futures.pop(future_id))


def _weight(future: Future) -> int:
    assert future.result is not None
    return ENTRY_BYTES + len(future.result.body)
