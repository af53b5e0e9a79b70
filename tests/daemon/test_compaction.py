"""Housekeeping: history goes by age and bytes, what recovery needs never does, and the file shrinks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import DeleteAdapter, PublishAdapter
from loractl.bus.settings import JournalConfig
from loractl.daemon.journal.compaction import Compaction
from loractl.daemon.journal.records import Gone, Record, Retried
from loractl.daemon.journal.store import Store
from loractl.tests.daemon.journal_entries import (
    ADAPTER,
    LANE,
    contradictions,
    created,
    ended,
    lane_opened,
    payloads,
    received,
    snapshot,
)

KEEP_S = 1000.0
PAUSE_S = 20.0
MIB = 2**20


@dataclass
class Keeper:
    """A journal, and a clock that stands until it is told otherwise."""

    file: Path
    keep_bytes: int = 2**40
    now: float = 10_000.0
    last: int = 0
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.file, clock=lambda: self.now)
        self.housekeeping()

    def housekeeping(self) -> None:
        """A new process does it from now on."""
        config = JournalConfig(keep_s=KEEP_S, keep_bytes=self.keep_bytes)
        self.compaction = Compaction(self.store, config, wall=lambda: self.now, clock=lambda: self.now)

    def next(self) -> int:
        self.last += 1
        return self.last

    def commit(self, *records: Record) -> None:
        self.store.commit(records)

    def create(self, adapter: AdapterId = ADAPTER, lane: LaneId = LANE) -> int:
        number = self.next()
        self.commit(created(number, adapter, lane), ended(number, self.next()))
        return number

    def run(self, *seqs: int, size: int = 10, end: bool = True, **more: object) -> list[int]:
        """Operations of the lane, each with a payload of its own; returns their numbers."""
        numbers = [self.next() for _ in seqs]
        records: list[Record] = []
        for number, seq in zip(numbers, seqs, strict=True):
            payload = number.to_bytes(4, "big") * (size // 4)
            records.append(received(number, seq=seq, frames=[b"header", payload], **more))  # type: ignore[arg-type]
        self.commit(*records, *(ended(number, self.next()) for number in numbers if end))
        return numbers

    def snapshots(self, *next_seqs: int) -> None:
        for next_seq in next_seqs:
            self.commit(snapshot(self.next(), ln_1=next_seq))

    def tidy(self) -> int:
        """A while later, until there is nothing left to do; returns in how many steps."""
        steps, self.now = 0, self.now + PAUSE_S
        while self.compaction.step():
            steps += 1
            assert steps < 100_000, "it never ends"
        return steps

    def kept(self, numbers: list[int]) -> list[int]:
        return [number for number in numbers if self.store.numbered(number) is not None]

    def whole(self, numbers: list[int]) -> list[int]:
        found = [(number, self.store.numbered(number)) for number in numbers]
        return [number for number, logged in found if logged is not None and logged.whole]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path / "journal.sqlite")
    yield keeper
    keeper.store.close()
    assert contradictions(keeper.file) == []


def test_history_goes_when_it_is_too_old_and_nothing_else_does(keeper: Keeper):
    birth = keeper.create()
    old = keeper.run(1, 2, 3, 4)
    keeper.snapshots(3, 4)
    keeper.now += KEEP_S / 2
    young = keeper.run(5, 6)
    keeper.snapshots(7)
    keeper.now += KEEP_S / 2 + 1

    keeper.tidy()

    # The snapshot before the newest one holds all up to 3.
    assert keeper.kept([birth, *old, *young]) == [old[3], *young]
    assert not keeper.store.begins(ADAPTER)
    assert [each.seq for each in keeper.store.after(ADAPTER)] == []


def test_what_the_snapshot_before_the_newest_does_not_hold_stays_however_old(keeper: Keeper):
    keeper.create()
    numbers = keeper.run(1, 2, 3, 4)
    keeper.snapshots(2, 4)
    keeper.now += 10 * KEEP_S

    keeper.tidy()

    assert keeper.kept(numbers) == numbers[1:]
    assert keeper.whole(numbers) == numbers[1:]


def test_an_adapter_with_one_snapshot_keeps_its_whole_way_from_its_creation(keeper: Keeper):
    birth = keeper.create()
    numbers = keeper.run(1, 2, 3)
    keeper.snapshots(4)
    keeper.now += 10 * KEEP_S

    keeper.tidy()

    assert keeper.kept([birth, *numbers]) == [birth, *numbers]
    assert keeper.store.begins(ADAPTER)


def test_what_has_no_outcome_stays_however_old(keeper: Keeper):
    keeper.create()
    numbers = keeper.run(1, end=False, kind=PublishAdapter.kind)  # it waits for a sampler
    keeper.snapshots(2, 3)
    keeper.now += 10 * KEEP_S

    keeper.tidy()

    assert keeper.kept(numbers) == numbers


def test_operations_on_lanes_that_never_were_go_in_their_time(keeper: Keeper):
    numbers = keeper.run(1, adapter=AdapterId("ad-guessed"), lane=LaneId("ln-guessed"))
    keeper.now += KEEP_S + 1

    keeper.tidy()

    assert keeper.kept(numbers) == []


def test_too_many_bytes_cost_frames_first_the_oldest_first_and_outcomes_stay(keeper: Keeper):
    keeper.create()
    numbers = keeper.run(*range(1, 101), size=100_000)
    keeper.snapshots(90, 101)
    keeper.keep_bytes = 5 * MIB
    keeper.housekeeping()

    keeper.tidy()

    whole = keeper.whole(numbers)
    assert whole == numbers[-len(whole) :]
    assert 30 < len(whole) < 60
    assert keeper.kept(numbers) == numbers
    assert keeper.store.outcome(numbers[0]) == [b"outcome"]
    assert not keeper.store.begins(ADAPTER)


def test_what_recovery_needs_stays_however_many_bytes_it_has(keeper: Keeper):
    birth = keeper.create()
    numbers = keeper.run(*range(1, 61), size=100_000)
    keeper.snapshots(31, 61)
    keeper.keep_bytes = 1 * MIB
    keeper.housekeeping()

    keeper.tidy()

    assert keeper.kept([birth, *numbers]) == keeper.whole(numbers) == numbers[30:]


def test_frames_that_were_needed_when_the_bytes_grew_too_many_go_when_they_are_history(keeper: Keeper):
    keeper.create()
    numbers = keeper.run(*range(1, 61), size=100_000)
    keeper.keep_bytes = 1 * MIB
    keeper.housekeeping()
    keeper.tidy()
    assert keeper.whole(numbers) == numbers

    keeper.snapshots(61, 61)
    keeper.tidy()

    assert len(keeper.whole(numbers)) < 10


def test_a_deleted_adapters_frames_go_at_once_and_its_outcomes_in_their_time(keeper: Keeper):
    keeper.create()
    numbers = keeper.run(*range(1, 201), size=8000)
    (late,) = keeper.run(201, end=False, size=8000)
    deletion = keeper.run(0, kind=DeleteAdapter.kind, lane=LaneId(""))
    keeper.commit(Gone(adapter=ADAPTER))

    keeper.tidy()
    assert (payloads(keeper.file), keeper.kept(numbers)) == (1, numbers)
    assert keeper.store.request(late)[0] == b"header"

    keeper.commit(ended(late, keeper.next(), failed=True))
    keeper.tidy()
    assert payloads(keeper.file) == 0

    keeper.now += KEEP_S + 1
    keeper.tidy()
    assert keeper.kept([*numbers, late, *deletion]) == []


def test_the_file_and_its_log_shrink_when_much_has_gone(keeper: Keeper):
    keeper.create()
    keeper.run(*range(1, 51), size=200_000)
    keeper.snapshots(51, 51)
    keeper.compaction.committed(50, 10 * MIB)
    keeper.tidy()
    before = keeper.file.stat().st_size
    keeper.now += KEEP_S + 1

    keeper.tidy()

    assert before > 9 * MIB
    assert keeper.file.stat().st_size < before / 2
    log = keeper.file.with_name("journal.sqlite-wal")
    assert log.stat().st_size <= 64 * MIB


def test_every_step_is_small(keeper: Keeper):
    keeper.create()
    keeper.run(*range(1, 21), size=300_000)
    keeper.snapshots(21, 21)
    keeper.now += KEEP_S + 1

    steps = keeper.tidy()

    assert steps > 20 / 5, "one megabyte goes in one step, and no more"


def test_after_a_step_the_commits_have_nine_times_what_it_took(tmp_path: Path):
    times = iter([10.0, 10.0, 12.0])
    store = Store(tmp_path / "journal.sqlite", clock=lambda: 0.0)
    store.commit([created(1), ended(1, 2), Gone(adapter=ADAPTER)])
    config = JournalConfig(keep_s=KEEP_S)
    compaction = Compaction(store, config, wall=lambda: 2 * KEEP_S, clock=lambda: next(times))
    assert compaction.step()  # copies the log, which cannot wait

    assert compaction.step()

    assert compaction.next_at == 12.0 + 9 * 2.0
    store.close()


def test_a_log_that_has_grown_large_is_copied_at_once(keeper: Keeper):
    keeper.tidy()
    assert keeper.compaction.next_at > keeper.now

    keeper.compaction.committed(1, 100 * MIB)

    assert keeper.compaction.next_at <= keeper.now


def test_a_clock_that_jumps_ahead_makes_nothing_old(keeper: Keeper):
    keeper.create()
    keeper.run(1)
    keeper.snapshots(2, 2)
    stood = keeper.now
    compaction = Compaction(
        keeper.store, JournalConfig(keep_s=KEEP_S), wall=lambda: stood + 2 * KEEP_S, clock=lambda: keeper.now
    )

    keeper.compaction = compaction
    keeper.tidy()

    assert len(keeper.store.history(ADAPTER, 0, 10)) == 1
    keeper.now += KEEP_S + 1
    keeper.tidy()
    assert keeper.store.history(ADAPTER, 0, 10) == []


LATER = LaneId("ln-later")


@pytest.mark.parametrize("keep_bytes", [3 * MIB, 1])
def test_a_lane_that_is_opened_while_history_is_looked_through_is_needed_at_once(
    keeper: Keeper, keep_bytes: int
):
    keeper.create()
    keeper.run(*range(1, 61), size=100_000)
    keeper.snapshots(61, 61)
    keeper.keep_bytes = keep_bytes
    keeper.housekeeping()
    keeper.now += PAUSE_S
    assert keeper.compaction.step()  # copies the log, which cannot wait
    assert keeper.compaction.step()
    opening = keeper.next()
    keeper.commit(lane_opened(opening, LATER), ended(opening, keeper.next()))
    numbers = keeper.run(1, 2, 3, lane=LATER, size=100_000)

    keeper.tidy()

    assert keeper.whole([opening, *numbers]) == [opening, *numbers]
    assert [each.seq for each in keeper.store.after(ADAPTER)] == [1, 2, 3]


def test_an_adapter_that_is_created_while_history_is_looked_through_is_needed_from_its_creation_on(
    keeper: Keeper,
):
    other, lane = AdapterId("ad-other"), LaneId("ln-other")
    keeper.create()
    birth = keeper.next()
    keeper.commit(created(birth, other, lane))
    keeper.run(*range(1, 91), size=100_000)
    keeper.snapshots(91, 91)
    keeper.keep_bytes = 1
    keeper.housekeeping()
    keeper.now += PAUSE_S
    assert keeper.compaction.step()
    assert keeper.compaction.step()
    keeper.commit(ended(birth, keeper.next()))
    numbers = keeper.run(1, 2, 3, adapter=other, lane=lane, size=100_000)

    keeper.tidy()

    assert keeper.whole([birth, *numbers]) == [birth, *numbers]
    assert keeper.store.begins(other)


def test_what_was_refused_on_no_lane_of_an_adapter_goes_and_leaves_its_history_whole(keeper: Keeper):
    keeper.create()
    refused = keeper.next()
    keeper.commit(lane_opened(refused, LATER), ended(refused, keeper.next(), failed=True))
    astray = keeper.run(1, lane=LaneId("ln-guessed"))
    keeper.now += KEEP_S + 1

    keeper.tidy()
    numbers = keeper.run(1, 2)

    assert keeper.kept([refused, *astray]) == []
    assert keeper.store.begins(ADAPTER)
    assert keeper.kept(numbers) == numbers


def test_what_runs_again_stays_until_it_has_another_outcome(keeper: Keeper):
    birth = keeper.next()
    keeper.commit(created(birth), ended(birth, keeper.next(), failed=True, again=True))
    keeper.commit(Retried(number=birth))
    keeper.now += KEEP_S + 1
    keeper.tidy()
    assert keeper.kept([birth]) == [birth]

    keeper.commit(ended(birth, keeper.next()))

    assert keeper.store.begins(ADAPTER)
    assert keeper.store.retried == set()


def test_what_has_gone_does_not_run_again(keeper: Keeper):
    with pytest.raises(StorageFailed, match="send it as a new request"):
        keeper.commit(Retried(number=5))
