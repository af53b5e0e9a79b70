"""The exclusive window: who alone may run, and until when (`trainer.window = "exclusive"`).

From an adapter's first forward_backward to its optim_step nothing of any other adapter runs. A client
that says nothing for `lease_s` in between loses the turn and nothing else: its gradients are its own
and its window stays open, so that the numbers are those of shared windows. Pure.
"""

from dataclasses import dataclass

from ..bus.ids import AdapterId


@dataclass(slots=True)
class Lease:
    """holder: who alone may run; None when everybody may, as always with shared windows."""

    exclusive: bool
    lease_s: float
    holder: AdapterId | None = None
    until: float = 0.0

    def held(self, now: float) -> AdapterId | None:
        """Who holds the lease; one that has run out is given up here."""
        if self.holder is not None and now >= self.until:
            self.holder = None
        return self.holder

    def ran(self, adapter: AdapterId, *, open_window: bool, now: float) -> None:
        """An operation of the adapter has run and left its window open, or closed."""
        if not self.exclusive:
            return
        if open_window and self.holder in (None, adapter):
            self.holder, self.until = adapter, now + self.lease_s
        elif not open_window:
            self.gone(adapter)

    def gone(self, adapter: AdapterId) -> None:
        """The adapter has no window any more."""
        if self.holder == adapter:
            self.holder = None
