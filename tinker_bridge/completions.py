"""Which results have come in, in the order of their ends: for clients that ask for many at once.

What there is to tell lies with the results (`future_table`); here is who waits for the next one.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

# What belongs together, such as the samples of one client of a sampling session.
Group = tuple[str, ...]

# Of one answer; the next poll goes on.
_AT_A_TIME = 1024


@dataclass(frozen=True, slots=True)
class Completion:
    """One ended future of a group, with its place among all completions."""

    number: int
    future: str
    failed: bool
    size_bytes: int


class Told(Protocol):
    def completions(self, group: Group, after: int, most: int) -> list[Completion]: ...


@dataclass(slots=True)
class _Readers:
    """Who waits for the next completion of one group. changed: set then."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0


class Completions:
    def __init__(self, told: Told) -> None:
        self._told = told
        self._readers: dict[Group, _Readers] = {}

    def __len__(self) -> int:
        """How many groups are waited for."""
        return len(self._readers)

    def added(self, group: Group) -> None:
        """There is a new one, and it is durable."""
        if readers := self._readers.get(group):
            readers.changed.set()

    async def after(self, group: Group, number: int, timeout_s: float) -> tuple[list[Completion], int]:
        """Those of a group after a number, waiting for the first; and the number to go on from."""
        found = self._told.completions(group, number, _AT_A_TIME)
        if not found and timeout_s > 0:
            await self._wait(group, timeout_s)
            found = self._told.completions(group, number, _AT_A_TIME)
        return found, found[-1].number if found else number

    async def _wait(self, group: Group, timeout_s: float) -> None:
        readers = self._readers.setdefault(group, _Readers())
        readers.changed.clear()
        readers.count += 1
        try:
            async with asyncio.timeout(timeout_s):
                await readers.changed.wait()
        except TimeoutError:
            pass  # nothing new is an answer, too
        finally:
            readers.count -= 1
            if not readers.count:
                del self._readers[group]
