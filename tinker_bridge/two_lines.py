"""What the loop reads first: however many requests come in one instant, who may not wait is read before them.

A loop hears of all that has come at once, and reads all of it before it goes on: with thousands of requests that
takes some tenths of a second. Here requests come in a few at a time, in their order, and what may not wait passes them.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from select import EPOLLIN, EPOLLOUT, epoll
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector, SelectorKey
from typing import Any

# In one round of the loop: of what may not wait, and of the others. Each of these brings up to a quarter of a MiB,
# or a request that takes most of a millisecond, and asking for the next ones takes a hundredth of one.
_FIRST = 64
_BEHIND = 2


class TwoLines(BaseSelector):
    """An event loop's selector. What is put off stands behind what is not, and each line goes round in turn.

    By default nothing is put off: that is for connections of clients, and other descriptors are the loop's own.
    """

    def __init__(self) -> None:
        self._keys: dict[int, SelectorKey] = {}
        self._put_off: set[int] = set()
        self._first, self._behind = epoll(), epoll()
        # Ready for as long as one of those behind is.
        self._first.register(self._behind, EPOLLIN)

    def put_off(self, descriptor: int) -> None:
        """From now on it stands behind."""
        if descriptor not in self._put_off:
            self._leave(descriptor)
            self._put_off.add(descriptor)
            self._join(descriptor)

    def let_pass(self, descriptor: int) -> None:
        """From now on it stands in front, as all that was never put off."""
        if descriptor in self._put_off:
            self._leave(descriptor)
            self._put_off.remove(descriptor)
            self._join(descriptor)

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key = SelectorKey(fileobj, _descriptor(fileobj), events, data)
        if key.fd in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._line(key.fd).register(key.fd, _mask(events))
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self.get_key(fileobj)
        self._leave(key.fd)
        del self._keys[key.fd]
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        before = self.get_key(fileobj)
        if events != before.events:
            self._line(before.fd).modify(before.fd, _mask(events))
        key = self._keys[before.fd] = before._replace(events=events, data=data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        wait_s = -1.0 if timeout is None else math.ceil(max(timeout, 0.0) * 1000) / 1000
        found = self._first.poll(wait_s, _FIRST)
        # Those behind have their share of each round, also when there are more in front than one tells of.
        if len(found) == _FIRST or any(descriptor == self._behind.fileno() for descriptor, _ in found):
            found += self._behind.poll(0, _BEHIND)
        return [self._ready(*each) for each in found if each[0] in self._keys]

    def close(self) -> None:
        self._first.close()
        self._behind.close()
        self._keys.clear()

    def get_map(self) -> Mapping[Any, SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def _line(self, descriptor: int) -> epoll:
        return self._behind if descriptor in self._put_off else self._first

    def _join(self, descriptor: int) -> None:
        if key := self._keys.get(descriptor):
            self._line(descriptor).register(descriptor, _mask(key.events))

    def _leave(self, descriptor: int) -> None:
        if descriptor in self._keys:
            with suppress(OSError):  # closed before it left
                self._line(descriptor).unregister(descriptor)

    def _ready(self, descriptor: int, mask: int) -> tuple[SelectorKey, int]:
        # An error or a hang-up is told to whoever reads and to whoever writes.
        events = (EVENT_WRITE if mask & ~EPOLLIN else 0) | (EVENT_READ if mask & ~EPOLLOUT else 0)
        key = self._keys[descriptor]
        return key, events & key.events


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _mask(events: int) -> int:
    return (EPOLLIN if events & EVENT_READ else 0) | (EPOLLOUT if events & EVENT_WRITE else 0)
