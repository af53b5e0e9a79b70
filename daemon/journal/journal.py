"""The journal as the daemon opens it: one connection to read with, one thread that writes."""

from ...bus.layout import StateLayout
from ...bus.settings import JournalConfig
from .known_ids import KnownIds
from .reading import Reader
from .records import Past
from .tables import Tables
from .writer import Writer


class Journal:
    def __init__(self, layout: StateLayout, config: JournalConfig) -> None:
        """Raises StorageFailed: its file cannot be opened."""
        known = KnownIds()
        self._reader = Reader(Tables(layout.journal), known)
        for one in self._reader.ids():
            known.add(one)
        self.past: Past = self._reader
        self.writer = Writer(layout.journal, config, known)

    def close(self) -> None:
        self._reader.close()
