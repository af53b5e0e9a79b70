"""The journal's one writer: a thread that commits all that waits at once (group commit).

What a turn of the loop submits is durable together with whatever came while the last commit was under
way, for one wait for the disk. Results come back in the order of submission. Between commits the thread
keeps house.

On a full disk new requests are refused while there is still room for the outcomes of those that were
taken in; whatever an outcome has to wait for, nothing else of the daemon stops.
"""

import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from ...bus.crash_points import crash_point
from ...bus.disk_room import mib_text
from ...bus.errors import StorageFailed
from ...bus.settings import JournalConfig
from .compaction import Compaction
from .known_ids import KnownIds, id_of
from .records import WITH_FRAMES, Received, Record
from .store import Store
from .tables import free_bytes

log = structlog.get_logger()

# Kept free on the disk for outcomes, and for the log's way into the file.
RESERVE_BYTES = 64 * 2**20
_LOOK_AGAIN_S = 1.0
# Taken off the socket at once, far more than there ever are.
_WAKES = 4096
# Of frames, in one commit.
_COMMIT_BYTES = 16 * 2**20

# A record, and why the journal did not take it; "" when it is durable.
Done = tuple[Record, str]


class Writer:
    """woken: readable when `take_done` has something, or the thread has ended. known: learns the ids of what
    is durable."""

    def __init__(
        self, file: Path, config: JournalConfig, known: KnownIds, *, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Raises StorageFailed: the file cannot be opened."""
        self._directory = file.parent
        self._known = known
        self._reserve_bytes = reserve_bytes
        self._waiting: queue.SimpleQueue[Sequence[Record] | None] = queue.SimpleQueue()
        self._done: deque[Done] = deque()
        self._store = Store(file)
        self._compaction = Compaction(self._store, config)
        self._ended = False
        self._bugs: list[Exception] = []  # of the commits in hand: logged when whoever waits was told
        self.woken, self._waker = socket.socketpair()
        self.woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Record]) -> None:
        self._waiting.put(records)

    def take_done(self) -> list[Done]:
        with suppress(BlockingIOError):
            while len(self.woken.recv(_WAKES)) == _WAKES:
                pass
        done = [self._done.popleft() for _ in range(len(self._done))]
        for record, refused in done:
            if isinstance(record, Received) and not refused:
                self._known.add(id_of(record.key))
        return done

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written or told: after `close`, or a bug of ours."""
        return self._ended

    def room(self) -> tuple[int, int]:
        """The bytes that are free where the journal lies, none where that cannot be told, and those that it keeps."""
        try:
            return free_bytes(self._directory), self._reserve_bytes
        except OSError:
            return 0, self._reserve_bytes

    def close(self) -> None:
        """Write what was submitted, then end."""
        self._waiting.put(None)
        self._thread.join()

    # --- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                for some in _commits_of(batch):
                    self._take_in(some)
                    crash_point("journal.told")
                if time.monotonic() >= self._compaction.next_at:
                    self._keep_house()
        except Exception:
            log.exception("journal.broke_off")
        finally:
            self._ended = True
            self._wake()
            self._store.close()

    def _next(self) -> list[Record] | None:
        """All that waits; nothing when it is time to keep house; None at the end."""
        try:
            first = self._waiting.get(timeout=max(0.0, self._compaction.next_at - time.monotonic()))
        except queue.Empty:
            return []
        if first is None:
            return None
        batch = [*first]
        with suppress(queue.Empty):
            while (more := self._waiting.get_nowait()) is not None:
                batch += more
            self._waiting.put(None)
        return batch

    def _take_in(self, batch: list[Record]) -> None:
        # New requests can be refused; outcomes of what ran need their place first.
        full = self._no_room_for(batch)
        taken = [record for record in batch if not (full and isinstance(record, Received))]
        rest = iter(self._commit_apart(taken))
        done = [(record, full) if full and isinstance(record, Received) else next(rest) for record in batch]
        # Whoever waits is told before anything that could fail.
        self._done += done
        self._wake()
        if reasons := {reason for _, reason in done} - {""}:
            log.warning("journal.not_written", records=len(batch), reasons=sorted(reasons))
        bugs, self._bugs = self._bugs, []
        for bug in bugs:
            log.error("journal.hit_a_bug", exc_info=bug)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is full, so it wakes already
            self._waker.send(b"\0")

    def _commit_apart(self, batch: Sequence[Record]) -> list[Done]:
        """All in one commit; where that fails, by halves: what cannot be written holds up nothing else."""
        if not batch:
            return []
        refused = self._commit(batch)
        if not refused or len(batch) == 1:
            return [(record, refused) for record in batch]
        half = len(batch) // 2
        return [*self._commit_apart(batch[:half]), *self._commit_apart(batch[half:])]

    def _no_room_for(self, batch: list[Record]) -> str:
        """Why new requests are refused before the disk is full; "" when they are not, or there are none."""
        size_bytes = _frame_bytes([record for record in batch if isinstance(record, Received)])
        if not size_bytes:
            return ""
        try:
            free = free_bytes(self._directory)
        except OSError as error:
            return f"the journal's directory cannot be looked at: {error}"
        # Twice: once in the log, once in the file.
        if free >= self._reserve_bytes + 2 * size_bytes:
            return ""
        return (
            f"the disk has {mib_text(free)} free, and the journal keeps {mib_text(self._reserve_bytes)} for outcomes of "
            "what runs: make room on it"
        )

    def _commit(self, batch: Sequence[Record]) -> str:
        """Why it was not possible; "" when it is durable."""
        try:
            self._store.commit(batch)
        except StorageFailed as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - a bug costs one commit, and nobody waits for ever
            self._bugs.append(error)
            return "loractl has a bug here; the daemon's log has the details"
        self._compaction.committed(len(batch), _frame_bytes(batch))
        return ""

    def _keep_house(self) -> None:
        try:
            self._compaction.step()
        except StorageFailed as error:
            log.warning("journal.not_tidied", reason=error.message)
            self._compaction.put_off(_LOOK_AGAIN_S)
        except Exception:  # as in `_commit`
            log.exception("journal.hit_a_bug")
            self._compaction.put_off(_LOOK_AGAIN_S)


def _commits_of(batch: list[Record]) -> Iterator[list[Record]]:
    """All at once, unless that is so much that its first would wait for its last."""
    if _frame_bytes(batch) < _COMMIT_BYTES:  # the usual case
        if batch:
            yield batch
        return
    first, size_bytes = 0, 0
    for last, record in enumerate(batch):
        size_bytes += _frame_bytes([record])
        if size_bytes >= _COMMIT_BYTES or last == len(batch) - 1:
            yield batch[first : last + 1]
            first, size_bytes = last + 1, 0


def _frame_bytes(records: Sequence[Record]) -> int:
    return sum(sum(map(len, each.frames)) for each in records if isinstance(each, WITH_FRAMES))
