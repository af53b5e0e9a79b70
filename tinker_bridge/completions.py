"""Which results have come in, in the order of their ends: for clients that ask for many at once."""

import asyncio
import time
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

# What belongs together, such as the samples of one client of a sampling session.
Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One ended future of a group, with its place among all completions."""

    number: int
    future: str
    failed: bool
    size_bytes: int


@dataclass(slots=True)
class _Row:
    """Completions of one group whose results are kept. changed: set at the next one. readers: who waits
    for it."""

    kept: deque[Completion] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0


class Completions:
    """kept: the ids of results that can still be read; what is no longer among them is not told of."""

    def __init__(self, kept: Container[str]) -> None:
        self._kept = kept
        self._rows: dict[Group, _Row] = {}
        # Above every number of an earlier process: readers go on from theirs after a restart, too.
        self._last = time.time_ns() // 1000

    def __len__(self) -> int:
        """How many groups take memory."""
        return len(self._rows)

    def add(self, group: Group, future: str, *, failed: bool, size_bytes: int) -> None:
        self._last += 1
        row = self._rows.setdefault(group, _Row())
        row.kept.append(Completion(self._last, future, failed, size_bytes))
        row.changed.set()

    async def after(self, group: Group, number: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Those of a group after a number, waiting for the first; and the number to go on from."""
        row = self._rows.setdefault(group, _Row())
        while row.kept and row.kept[0].number <= number:
            row.kept.popleft()
        if not row.kept and timeout_s > 0:
            row.changed.clear()
            row.readers += 1
            try:
                async with asyncio.timeout(timeout_s):
                    await row.changed.wait()
            except TimeoutError:
                pass  # nothing new is an answer, too
            finally:
                row.readers -= 1
        found = [each for each in row.kept if each.number > number]
        self.tidy(group)
        return found, found[-1].number if found else number

    def tidy(self, group: Group) -> None:
        """A row is as long as there are results to tell of, and there for as long as anybody needs it."""
        row = self._rows.get(group)
        if row is None:
            return
        while row.kept and row.kept[0].future not in self._kept:
            row.kept.popleft()
        if not row.kept and not row.readers:
            del self._rows[group]
