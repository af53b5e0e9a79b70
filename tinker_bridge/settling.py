"""How records get from SQLite's log to the disk: in a thread, and before anybody outside hears of them.

A commit of theirs is in the log at once, where everyone in this process sees it, and kill -9 costs nothing of it.
What only the power can take is made durable by `settle`, as a full synchronisation by SQLite itself would, but
without the loop waiting for it. No answer, and no result, leaves before that (`after_records`, `future_journal`).
"""

import os
from collections.abc import Callable
from pathlib import Path

from ..bus.errors import StorageFailed

# Commits until what is in the log goes where it belongs, and the log can begin anew.
_LOG_COMMITS = 500


class Settling:
    """move: brings what is in the log to where it belongs. sync: waits until what was written to an open file
    is durable."""

    def __init__(
        self, file: Path, *, move: Callable[[], None], sync: Callable[[int], None] = os.fsync
    ) -> None:
        self._file, self._move, self._sync = file, move, sync
        self._written = self._settled = self._moved = 0
        self.failure = ""

    @property
    def is_settled(self) -> bool:
        """Whether all that was written is durable."""
        return self._settled == self._written

    def wrote(self) -> None:
        """There was a commit."""
        self._written += 1

    def settle(self) -> None:
        """Make durable what was written by now. For one thread.

        Raises:
            StorageFailed: the disk refused it, and always from then on: what it says to a second attempt is
                worth nothing. The next process finds what there is.
        """
        if self.failure:
            raise StorageFailed(self.failure)
        written = self._written
        if written == self._settled:
            return
        try:
            self._sync_log()
        except OSError as error:
            self.failure = f"records cannot be made durable: {error}"
            raise StorageFailed(self.failure) from error
        self._settled = written
        if written - self._moved > _LOG_COMMITS:
            self._move()
            self._moved = written

    def _sync_log(self) -> None:
        log = os.open(f"{self._file}-wal", os.O_RDONLY)
        try:
            self._sync(log)
        finally:
            os.close(log)
