"""Which adapter was not used for so long that its memory is better used otherwise. Pure.

Time is known only when somebody looks: what was used since the last look counts as used at that look.
"""

from ..bus.ids import AdapterId


class Idleness:
    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._used: set[AdapterId] = set()
        self._since: dict[AdapterId, float] = {}  # the longest unused first

    def used(self, adapter: AdapterId) -> None:
        self._used.add(adapter)

    def gone(self, adapter: AdapterId) -> None:
        self._used.discard(adapter)
        self._since.pop(adapter, None)

    def next(self, now: float) -> AdapterId | None:
        """The longest idle adapter, each once until it is used again; None if none is idle for long enough."""
        for adapter in self._used:
            self._since.pop(adapter, None)
            self._since[adapter] = now
        self._used.clear()
        longest = next(iter(self._since), None)
        if longest is None or now - self._since[longest] < self._after_s:
            return None
        del self._since[longest]
        return longest
