"""What was written into the journal is read from it again, also by another process's connection."""

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId, LaneId, RequestId
from loractl.bus.messages import DeleteAdapter, LanePosition, PublishAdapter, UnloadAdapter
from loractl.daemon.journal.known_ids import KnownIds, id_of
from loractl.daemon.journal.reading import Reader
from loractl.daemon.journal.records import (
    Crashed,
    Damaged,
    Forgotten,
    Gone,
    Numbered,
    Received,
    VersionDeleted,
)
from loractl.daemon.journal.store import Store
from loractl.daemon.journal.tables import FORMAT, Tables
from loractl.tests.daemon.journal_entries import (
    ADAPTER,
    ALICE,
    LANE,
    contradictions,
    created,
    ended,
    lane_opened,
    payloads,
    received,
    snapshot,
)

OTHER, OTHER_LANE = AdapterId("ad-2"), LaneId("ln-2")
LARGE = bytes(range(256)) * 20
WRITTEN = Path("/proc/thread-self/io")


def written_bytes() -> int:
    """By this thread, into whatever file: others of the process tell the tests of their own."""
    return int(WRITTEN.read_text().partition("wchar: ")[2].split()[0])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    store = Store(file, clock=lambda: 1000.0)
    yield store
    store.close()
    assert contradictions(file) == []


@pytest.fixture
def past(store: Store, file: Path) -> Iterator[Reader]:
    """As the broker reads: on a connection of its own."""
    reader = Reader(Tables(file))
    yield reader
    reader.close()


def test_an_empty_journal_knows_nothing(past: Reader):
    assert (past.last_number(), past.last_event()) == (0, 0)
    assert past.find((ALICE, RequestId("r1"))) is None
    assert (past.unfinished(), past.adapters(), past.deleted_versions()) == ([], [], [])
    assert (past.snapshot(ADAPTER), past.begins(ADAPTER), past.lanes(ADAPTER)) == (None, False, [])


def test_a_request_is_found_by_its_id_with_its_frames_and_then_its_outcome(store: Store, past: Reader):
    store.commit([received(1, frames=[b"header", LARGE, b""])])
    found = past.find((ALICE, RequestId("r1")))

    assert found is not None
    assert (found.number, found.seq, found.order, found.came_unix_s) == (1, 1, None, 1000.0)
    assert past.request(1) == [b"header", LARGE, b""]
    assert [each.number for each in past.unfinished()] == [1]

    store.commit([ended(1, 2, frames=[b"a", b"b"], failed=True, again=True)])
    found = past.numbered(1)

    assert found is not None
    assert (found.order, found.failed, found.again) == (2, True, True)
    assert past.outcome(1) == [b"a", b"b"]
    assert (past.unfinished(), past.last_number()) == ([], 2)


def test_an_outcome_that_was_worth_another_try_gives_way_to_the_next(store: Store, past: Reader):
    store.commit([received(1), ended(1, 2, failed=True, again=True)])
    store.commit([ended(1, 3, frames=[b"done"])])

    found = past.numbered(1)

    assert found is not None
    assert (found.order, found.failed, found.again) == (3, False, False)
    assert past.outcome(1) == [b"done"]


def test_ids_of_other_tenants_and_other_ids_are_not_found(store: Store, past: Reader):
    store.commit([received(1)])

    assert past.find((OTHER, RequestId("r1"))) is None  # type: ignore[arg-type]
    assert past.find((ALICE, RequestId("r2"))) is None


def test_a_large_payload_lies_in_the_file_once_and_goes_with_its_last_request(
    store: Store, past: Reader, file: Path
):
    store.commit([received(1, frames=[b"one", LARGE]), received(2, frames=[b"two", LARGE, LARGE])])
    assert payloads(file) == 1

    store.commit([Forgotten(number=2)])
    assert (payloads(file), past.request(1)) == (1, [b"one", LARGE])

    store.commit([Forgotten(number=1)])
    assert payloads(file) == 0


def test_a_forgotten_request_never_was_and_its_number_is_never_given_again(store: Store, past: Reader):
    store.commit([received(7), Forgotten(number=7)])

    assert past.find((ALICE, RequestId("r7"))) is None
    assert (past.unfinished(), past.last_number()) == ([], 7)


def test_operations_after_the_beginning_come_in_the_order_of_their_outcomes_then_of_arrival(
    store: Store, past: Reader
):
    store.commit([created(1), ended(1, 2), *(received(number, seq=number - 2) for number in range(3, 8))])
    store.commit([ended(5, 10), ended(3, 11)])

    assert past.begins(ADAPTER)
    assert past.lanes(ADAPTER) == [LanePosition(lane=LANE, next_seq=1)]
    assert [each.number for each in past.after(ADAPTER)] == [5, 3, 4, 6, 7]
    assert past.adapters() == [ADAPTER]


def test_the_newest_snapshot_says_what_is_left_to_run_on_each_lane(store: Store, past: Reader):
    second, third = LaneId("ln-2"), LaneId("ln-3")
    store.commit([created(1), ended(1, 2), lane_opened(3, second), ended(3, 4)])
    store.commit([received(number, seq=number - 4) for number in range(5, 9)])
    store.commit([received(9, seq=1, lane=second), *(ended(number, number + 10) for number in range(5, 10))])
    store.commit([snapshot(20, ln_1=2), snapshot(21, ln_1=4, ln_2=1)])
    store.commit([lane_opened(22, third), ended(22, 23), received(24, seq=1, lane=third)])

    newest = past.snapshot(ADAPTER)

    assert newest is not None
    assert newest == snapshot(21, ln_1=4, ln_2=1)
    assert {each.lane: each.next_seq for each in past.lanes(ADAPTER)} == {LANE: 4, second: 1, third: 1}
    assert [(each.lane, each.seq) for each in past.after(ADAPTER)] == [(LANE, 4), (second, 1), (third, 1)]


def test_a_lane_that_closed_before_the_snapshot_is_not_opened_again(store: Store, past: Reader):
    store.commit([created(1), ended(1, 2), received(3, seq=1), ended(3, 4), snapshot(5)])

    assert (past.lanes(ADAPTER), past.after(ADAPTER), past.adapters()) == ([], [], [])


def test_an_unload_whose_snapshot_is_damaged_runs_again_between_the_lanes_before_and_behind_it(
    store: Store, past: Reader
):
    second = LaneId("ln-2")
    store.commit([created(1), ended(1, 2), snapshot(3, ln_1=1), received(4, seq=1), ended(4, 5)])
    unloads = [received(number, seq=0, kind=UnloadAdapter.kind, lane=LaneId("")) for number in (6, 8)]
    store.commit([unloads[0], ended(6, 7, failed=True), unloads[1], snapshot(9), ended(8, 10)])
    assert (past.after(ADAPTER), past.adapters()) == ([], [])
    store.commit([lane_opened(11, second), ended(11, 12), received(13, seq=1, lane=second), ended(13, 14)])
    assert [each.number for each in past.after(ADAPTER)] == [13]

    store.commit([Damaged(adapter=ADAPTER, name="9")])

    assert [each.number for each in past.after(ADAPTER)] == [4, 8, 13]


def test_a_lane_that_could_not_be_opened_is_none(store: Store, past: Reader):
    store.commit([created(1), ended(1, 2, failed=True)])

    assert (past.begins(ADAPTER), past.lanes(ADAPTER), past.adapters()) == (False, [], [])


def test_a_damaged_snapshot_gives_way_to_the_one_before(store: Store, past: Reader):
    store.commit([snapshot(1, ln_1=2), snapshot(2, ln_1=3)])

    store.commit([Damaged(adapter=ADAPTER, name="2")])
    assert past.snapshot(ADAPTER) == snapshot(1, ln_1=2)

    store.commit([Damaged(adapter=ADAPTER, name="1")])
    assert past.snapshot(ADAPTER) is None


def test_the_two_newest_snapshots_are_remembered(store: Store, past: Reader):
    other = snapshot(4, adapter=OTHER, ln_2=1)
    store.commit([snapshot(1), snapshot(2), other])
    store.commit([snapshot(3)])

    assert past.snapshots(ADAPTER, 10) == [snapshot(3), snapshot(2)]
    assert past.snapshots(OTHER, 10) == [other]


def test_a_snapshot_that_holds_what_has_no_outcome_yet_is_refused(store: Store, past: Reader):
    store.commit([received(1), received(2), received(3)])

    for early in ([snapshot(5, ln_1=3)], [ended(1, 4), snapshot(5, ln_1=3)]):
        with pytest.raises(StorageFailed, match="whose outcome is not here yet"):
            store.commit(early)
    assert past.snapshot(ADAPTER) is None

    store.commit([snapshot(8, ln_1=3), ended(1, 6), ended(2, 7)])  # number 3 is none of it
    assert past.snapshot(ADAPTER) is not None


def test_a_publish_may_wait_for_its_sampler_while_snapshots_go_on(store: Store, past: Reader):
    store.commit([received(1, kind=PublishAdapter.kind), snapshot(2, ln_1=2)])

    assert past.snapshot(ADAPTER) is not None


def test_of_a_deleted_adapter_only_the_outcomes_are_left(store: Store, past: Reader):
    store.commit([created(1), ended(1, 2), received(3, seq=1), ended(3, 4), snapshot(5, ln_1=1)])
    deletion = received(6, seq=0, kind=DeleteAdapter.kind, lane=LaneId(""))
    store.commit([deletion, ended(6, 7), Gone(adapter=ADAPTER)])

    assert (past.begins(ADAPTER), past.lanes(ADAPTER), past.after(ADAPTER)) == (False, [], [])
    assert (past.snapshot(ADAPTER), past.adapters()) == (None, [])
    assert past.outcome(3) == [b"outcome"]


def test_crashes_add_up(store: Store, past: Reader):
    store.commit([received(1), received(2)])

    store.commit([Crashed(numbers=(1, 2), weight=2)])
    store.commit([Crashed(numbers=(2,), weight=1), Crashed(numbers=(2,), weight=1)])

    assert [each.crashes for each in past.unfinished()] == [2, 4]


def test_deleted_versions_are_remembered_once_each(store: Store, past: Reader):
    deleted = VersionDeleted(tenant=ALICE, adapter=ADAPTER, version=3)

    store.commit([deleted, deleted])

    assert past.deleted_versions() == [deleted]


def test_history_is_read_page_by_page_in_the_order_of_outcomes(store: Store, past: Reader):
    store.commit([created(1), ended(1, 2), *(received(number, seq=number - 2) for number in range(3, 9))])
    store.commit([received(9, adapter=OTHER, lane=OTHER_LANE), ended(9, 10)])
    store.commit([ended(number, number + 10) for number in (4, 3, 6)])
    pages = [past.history(ADAPTER, 0, 2), past.history(ADAPTER, 14, 2), past.history(ADAPTER, 16, 2)]

    assert [[each.number for each in page] for page in pages] == [[3, 4], [6, 5], [5, 7]]
    assert past.owner(ADAPTER) == ALICE
    assert past.owner(AdapterId("")) is None


def test_either_all_of_a_commit_is_there_or_nothing(store: Store, past: Reader):
    store.commit([received(1)])

    with pytest.raises(StorageFailed):
        store.commit([received(2, frames=[LARGE]), received(1, request="again")])
    store.commit([received(3)])

    assert [each.number for each in past.unfinished()] == [1, 3]


def test_many_records_of_every_kind_are_one_commit(store: Store, past: Reader):
    requests: list[Received] = [received(number) for number in range(1, 201)]

    store.commit([*requests, *(ended(each.number, 1000 + each.number) for each in requests[:150])])

    assert [each.number for each in past.unfinished()] == [*range(151, 201)]
    assert past.last_number() == 1150


@pytest.mark.skipif(not WRITTEN.exists(), reason="the kernel does not say what a process writes")
def test_a_commit_is_written_into_the_log_and_nowhere_else(store: Store, file: Path):
    store.commit([received(each, adapter=AdapterId(f"ad-{each % 997}")) for each in range(1, 3000)])
    log, written = file.with_name(f"{file.name}-wal"), written_bytes()
    length = log.stat().st_size

    store.commit([received(each, adapter=AdapterId(f"ad-{each % 997}")) for each in range(3000, 4000)])

    assert written_bytes() - written == log.stat().st_size - length


def test_known_ids_answer_for_the_file_and_learn_what_is_new(store: Store, file: Path):
    store.commit([received(1)])
    known = KnownIds([id_of((ALICE, RequestId("r1")))])
    past = Reader(Tables(file), known)
    store.commit([received(2)])

    assert past.find((ALICE, RequestId("r1"))) is not None
    assert past.find((ALICE, RequestId("r2"))) is None
    known.add(id_of((ALICE, RequestId("r2"))))
    assert past.find((ALICE, RequestId("r2"))) is not None
    past.close()


def test_a_file_of_a_newer_format_is_refused_untouched(file: Path):
    Store(file).close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")

    with pytest.raises(StorageFailed, match="newer loractl"):
        Store(file)


def test_a_file_that_is_no_journal_is_refused_by_name(file: Path):
    file.write_bytes(b"no database at all, but long enough for a header" * 100)

    with pytest.raises(StorageFailed, match=r"journal\.sqlite"):
        Store(file)


def test_the_file_is_the_users_alone(store: Store, file: Path):
    store.commit([received(1)])

    modes = {stat.S_IMODE(path.stat().st_mode) for path in file.parent.glob("journal.sqlite*")}

    assert modes == {0o600}


def test_the_last_event_is_the_highest_that_was_ever_told(store: Store, past: Reader):
    store.commit([Numbered(last_event=7)])
    store.commit([Numbered(last_event=5)])  # refused at first, and tried again

    assert past.last_event() == 7
