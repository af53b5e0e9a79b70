"""A SQLite file of ours: for its owner's eyes alone, and durable with every commit.

WAL with full synchronisation: what was committed is there after the power went. What the tables hold is
left to whoever opens them.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .disk_sync import sync
from .errors import StorageFailed

# The log may grow beyond it for a large request; afterwards it is cut to this.
_LOG_BYTES = 64 * 2**20
_DURABLE = (
    "auto_vacuum = INCREMENTAL",  # heeded before the first table is made, not later
    "journal_mode = WAL",
    "synchronous = FULL",
    f"journal_size_limit = {_LOG_BYTES}",
)


def open_database(
    file: Path,
    *,
    what: str,
    newest: int,
    changes: Callable[[int], str],
    settings: Sequence[str] = (),
    prepared: int = 128,
) -> sqlite3.Connection:
    """Open or make a file. The connection may be handed from one thread to another, and is used by one at a time.

    newest: the format that we write. changes: the statements that bring a file of an older format to it; 0 is
    that of a new file. settings: PRAGMAs besides those of every file. prepared: statements that stay compiled.

    Raises:
        StorageFailed: it cannot be opened, or was written by a newer version.
    """
    try:
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, cached_statements=prepared)
        try:
            file.chmod(0o600)
            _prepare(db, file, newest, changes, (*_DURABLE, *settings))
            sync(file.parent)  # the file's name, too, has to outlive the machine's power
        except BaseException:
            db.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise StorageFailed(f"cannot open {what} {file}: {error}") from error
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Make all that is written inside durable, or none of it. Raises sqlite3.Error."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    finally:
        # SQLite ends the transaction itself where the disk is full; what it said then is the reason.
        if db.in_transaction:
            db.execute("ROLLBACK")


def give_back(db: sqlite3.Connection, pages: int) -> None:
    """Cut so many free pages off the file. Raises sqlite3.Error."""
    # As a script, because Python steps a statement without columns once, and each step frees one page.
    db.executescript(f"PRAGMA incremental_vacuum({pages})").close()


def _prepare(
    db: sqlite3.Connection, file: Path, newest: int, changes: Callable[[int], str], settings: Sequence[str]
) -> None:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found > newest:
        raise StorageFailed(
            f"{file} was written by a newer loractl: upgrade, or choose another state directory"
        )
    for setting in settings:
        db.execute(f"PRAGMA {setting}").close()
    if found < newest:
        db.executescript(f"BEGIN IMMEDIATE; {changes(found)} PRAGMA user_version = {newest}; COMMIT")
