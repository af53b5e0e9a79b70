"""The device memory of rows: taken, given back, and taken again by the next row of the same layout.

On a CPU, memory fresh from the operating system costs a page fault for every 4 KiB that is written
first, as much as the copy that fills it; and a row that comes back brings its views with it. What is
kept for later never makes the whole larger than it was when the most was in use.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch

from .row_layout import RowLayout
from .row_views import RowViews


def ran_out(error: RuntimeError) -> bool:
    """Whether it says that memory ran out."""
    # torch has a class for the device's memory only; on a CPU the message is all there is.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class RowMemory:
    """in_use_bytes, kept_bytes: of rows that somebody holds, and of those kept for the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.in_use_bytes = 0
        self.kept_bytes = 0
        self._most_bytes = 0
        self._kept: OrderedDict[int, RowViews] = OrderedDict()  # by id, in the order they were given back

    def take(self, layout: RowLayout, dtype: torch.dtype) -> RowViews:
        """A row [N] that holds anything. Raises torch.OutOfMemoryError."""
        size_bytes = layout.size * dtype.itemsize
        found = self._newest_kept(layout, dtype)
        if found is not None:
            del self._kept[id(found)]
            self.kept_bytes -= size_bytes
        else:
            self._most_bytes = max(self._most_bytes, self.in_use_bytes + size_bytes)
            self._shrink(self._most_bytes - size_bytes)
            found = RowViews(torch.empty(layout.size, dtype=dtype, device=self.device), layout)
        self.in_use_bytes += size_bytes
        return found

    def give(self, views: RowViews) -> None:
        """Nobody uses it from here on."""
        self.in_use_bytes -= views.row_N.nbytes
        self.kept_bytes += views.row_N.nbytes
        self._kept[id(views)] = views

    def release(self) -> None:
        """Keep nothing."""
        self._shrink(self.in_use_bytes)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shrink(self, most_bytes: int) -> None:
        """Let go of the oldest until all that is in use or kept is at most so much."""
        while self._kept and self.in_use_bytes + self.kept_bytes > most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= oldest.row_N.nbytes

    def _newest_kept(self, layout: RowLayout, dtype: torch.dtype) -> RowViews | None:
        """The one most likely still in the cache."""
        for views in reversed(self._kept.values()):
            if views.layout is layout and views.row_N.dtype is dtype:
                return views
        return None


def fits(memory: RowMemory, work: Callable[[], None]) -> bool:
    """Do the work. False: memory ran out on the way, and what could be let go of is let go of."""
    try:
        work()
    except RuntimeError as error:
        if not ran_out(error):
            raise
    else:
        return True
    # What the work held is free only once the exception is gone.
    memory.release()
    return False
