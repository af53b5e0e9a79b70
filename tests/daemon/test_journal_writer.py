"""The writer: one commit for all that waits, answers in order, and nobody left waiting."""

import select
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import RequestId
from loractl.bus.settings import JournalConfig
from loractl.daemon.journal.known_ids import KnownIds, id_of
from loractl.daemon.journal.records import Received, Record
from loractl.daemon.journal.store import Store
from loractl.daemon.journal.writer import Done, Writer
from loractl.tests.daemon.journal_entries import ALICE, commits, contradictions, ended, received

PATIENCE_S = 120.0
NO_DISK_HAS_IT = 2**62


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def known() -> KnownIds:
    return KnownIds()


@pytest.fixture
def writer(file: Path, known: KnownIds) -> Iterator[Writer]:
    writer = Writer(file, JournalConfig(), known)
    yield writer
    writer.close()
    assert contradictions(file) == []


def done(writer: Writer, count: int) -> list[Done]:
    """The next so many results, as the loop takes them."""
    found: list[Done] = []
    while len(found) < count:
        ready, _, _ = select.select([writer.woken], [], [], PATIENCE_S)
        assert ready, f"{len(found)} of {count} were told"
        found += writer.take_done()
    return found


def test_what_is_told_to_be_durable_is_there_for_others_in_the_order_of_submission(
    writer: Writer, file: Path
):
    records: list[Record] = [received(1), ended(1, 2), received(3)]

    writer.submit(records)

    assert done(writer, 3) == [(record, "") for record in records]
    with closing(Store(file)) as past:
        assert [each.number for each in past.unfinished()] == [3]


def test_all_that_came_while_a_commit_was_under_way_is_one_commit(writer: Writer, file: Path):
    writer.submit([received(1)])
    done(writer, 1)
    before = commits(file)

    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")  # the next commit is under way until this one ends
        for number in range(2, 102):
            writer.submit([received(number)])
        holder.execute("ROLLBACK")
    told = done(writer, 100)

    assert [record.number for record, _ in told if isinstance(record, Received)] == [*range(2, 102)]
    assert commits(file) - before <= 2


def test_what_is_very_large_is_told_before_all_that_came_with_it_is_written(writer: Writer, file: Path):
    large = [received(number, frames=[bytes([number]) * 9_000_000]) for number in range(1, 6)]

    writer.submit(large)

    assert done(writer, 5) == [(record, "") for record in large]
    assert commits(file) > 2


def test_what_cannot_be_written_is_told_with_the_reason_and_the_writer_goes_on(
    writer: Writer, known: KnownIds
):
    writer.submit([received(1)])
    done(writer, 1)

    writer.submit([received(1, request="twice"), ended(1, 2)])
    (_, refused), (_, outcome) = done(writer, 2)

    assert ("UNIQUE" in refused, outcome) == (True, "")
    assert id_of((ALICE, RequestId("twice"))) not in known
    writer.submit([received(3)])
    assert done(writer, 1) == [(received(3), "")]


def test_ids_are_known_once_they_are_durable(writer: Writer, known: KnownIds):
    writer.submit([received(1)])
    done(writer, 1)

    assert id_of((ALICE, RequestId("r1"))) in known


def test_new_requests_are_refused_before_the_disk_is_full_and_outcomes_are_taken(file: Path, known: KnownIds):
    with closing(Store(file)) as store:
        store.commit([received(1)])
    writer = Writer(file, JournalConfig(), known, reserve_bytes=NO_DISK_HAS_IT)

    writer.submit([received(2), ended(1, 3)])
    (_, refused), (_, outcome) = done(writer, 2)
    writer.close()

    assert "MiB free" in refused
    assert f"the journal keeps {NO_DISK_HAS_IT / 2**20:.1f} MiB for outcomes" in refused
    assert outcome == ""


def test_at_the_end_all_that_was_submitted_is_written(file: Path, known: KnownIds):
    writer = Writer(file, JournalConfig(), known)
    for number in range(1, 51):
        writer.submit([received(number)])

    writer.close()

    assert len(writer.take_done()) == 50
    with closing(Store(file)) as past:
        assert len(past.unfinished()) == 50


class NoLog:
    """Where a log line itself fails."""

    def write(self, text: str) -> None:
        raise OSError("No space left on device")

    def flush(self) -> None: ...


@pytest.fixture
def no_log() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=NoLog()))
    yield
    structlog.reset_defaults()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_waits_is_told_before_anything_is_logged_and_a_thread_that_ends_wakes_the_loop(
    file: Path, known: KnownIds, no_log: None
):
    writer = Writer(file, JournalConfig(), known, reserve_bytes=NO_DISK_HAS_IT)

    writer.submit([received(1)])
    ((_, refused),) = done(writer, 1)
    while not writer.ended:
        ready, _, _ = select.select([writer.woken], [], [], PATIENCE_S)
        assert ready
        writer.take_done()
    writer.close()

    assert "MiB free" in refused


def test_a_bug_in_a_commit_is_told_to_whoever_waits_and_the_writer_goes_on(writer: Writer):
    writer.submit([received(1, frames=("no bytes",))])  # type: ignore[arg-type]
    ((_, refused),) = done(writer, 1)

    assert "bug" in refused
    assert not writer.ended
    writer.submit([received(3)])
    assert done(writer, 1) == [(received(3), "")]


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path, known: KnownIds):
    with pytest.raises(StorageFailed):
        Writer(tmp_path / "no such directory" / "journal.sqlite", JournalConfig(), known)


def test_what_cannot_be_written_holds_up_nothing_that_came_with_it(writer: Writer, file: Path):
    impossible = ended(2, 2**70)
    records: list[Record] = [received(1), received(2), impossible, received(3), ended(1, 9)]

    writer.submit(records)

    told = done(writer, 5)
    assert [record for record, _ in told] == records
    assert [record for record, refused in told if refused] == [impossible]
    with closing(Store(file)) as past:
        assert [each.number for each in past.unfinished()] == [2, 3]


def test_a_bug_in_housekeeping_ends_nothing(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    def broken(self: object) -> bool:
        raise OSError("stale file handle")

    monkeypatch.setattr("loractl.daemon.journal.compaction.Compaction.step", broken)
    writer.submit([received(1)])

    assert done(writer, 1) == [(received(1), "")]
    writer.submit([received(2)])
    assert done(writer, 1) == [(received(2), "")]
