"""The journal as the daemon opens it: one connection to read with, one thread that writes."""

from ...bus.layout import StateLayout
from .records import Past
from .store import Store
from .writer import Writer


class Journal:
    def __init__(self, layout: StateLayout) -> None:
        """Raises StorageFailed: its file cannot be opened."""
        self._store = Store(layout.journal)
        self.past: Past = self._store
        self.writer = Writer(layout.journal)

    def close(self) -> None:
        self._store.close()
