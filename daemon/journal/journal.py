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
        tables = Tables(layout.journal)
        known = KnownIds([one for (one,) in tables.rows("SELECT id FROM requests")])
        self._reader = Reader(tables, known)
        self.past: Past = self._reader
        self.writer = Writer(layout.journal, config, known)

    def close(self) -> None:
        self._reader.close()
