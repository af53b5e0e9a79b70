"""Operations of a run that come without a number: they get one here, on a lane of their own.

Their futures' keys say which lane and number, so that one that is run again after a restart keeps its
place. Whatever comes new after a restart goes on another lane, for nobody knows how far the first one was.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ..bus.ids import LaneId
from .future_ids import Key


class Unnumbered:
    """opened: opens a lane by its name, and the same one again under the same name. name: makes a new one."""

    def __init__(
        self, run: str, opened: Callable[[str], Awaitable[LaneId]], *, name: Callable[[], str]
    ) -> None:
        self._run = run
        self._opened = opened
        self._name = name
        self._lanes: dict[str, asyncio.Future[LaneId]] = {}
        self._current = ""
        self._last = 0

    def next_key(self) -> Key:
        """The place behind all that came before."""
        if not self._current or _failed(self._lane(self._current)):
            self._current, self._last = self._name(), 0
        self._last += 1
        return ("unnumbered", self._run, self._current, str(self._last))

    @staticmethod
    def number(key: Key) -> int:
        return int(key[3])

    def lane(self, key: Key) -> "asyncio.Future[LaneId]":
        return self._lane(key[2])

    def is_on(self, lane: LaneId) -> bool:
        """Whether what comes next would go there."""
        current = self._lanes.get(self._current)
        return current is not None and current.done() and not _failed(current) and current.result() == lane

    def _lane(self, name: str) -> "asyncio.Future[LaneId]":
        if name not in self._lanes:
            self._lanes[name] = asyncio.ensure_future(self._opened(name))
        return self._lanes[name]


def _failed(lane: "asyncio.Future[LaneId]") -> bool:
    """Whether it could not be opened: another may."""
    return lane.done() and (lane.cancelled() or lane.exception() is not None)
