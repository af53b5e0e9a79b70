"""Snapshots as the trainer takes them: between turns, told behind what they hold, gone on from to the same bits."""

import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    ActorReady,
    CheckpointSaved,
    DeleteCheckpoint,
    Done,
    Envelope,
    KeepSnapshot,
    LanePosition,
    LoadCheckpoint,
    LoraSpec,
    Message,
    RecoverAdapter,
    Recovered,
    SaveCheckpoint,
    SnapshotTaken,
    StateLoaded,
    UnloadAdapter,
)
from loractl.bus.pulse import Strand
from loractl.tests.trainer_actor.loop.harness import (
    Adapter,
    Office,
    Trainer,
    create,
    pass_over,
    same,
    start,
    start_process,
    stop,
)
from loractl.trainer_actor.adapter import Adapter as LiveAdapter
from loractl.trainer_actor.adapters import Adapters
from loractl.trainer_actor.bank import Piece
from loractl.trainer_actor.boundary import Boundary
from loractl.trainer_actor.disk_jobs import DiskJobs, Later
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.lanes import Answer, Lanes
from loractl.trainer_actor.operations import Operations
from loractl.trainer_actor.queues import Queued
from loractl.trainer_actor.saved_states import Capture
from loractl.trainer_actor.snapshot_policy import RETRY_S
from loractl.trainer_actor.snapshotting import Snapshotting
from loractl.trainer_actor.windows import Event
from torch import Tensor

Serve = Callable[..., Office]
SOON = "journal.snapshot_bytes=1"  # every operation that has data makes its adapter due


def last(adapter: Adapter) -> list[np.ndarray]:
    """What the adapter says now, without a trace."""
    adapter.forward_backward(999, forward_only=True)
    return [adapter.results.pop()]


def newest(office: Office, adapter: Adapter, seq: int) -> SnapshotTaken:
    """The first report of a state that holds the lane's operations below `seq`."""
    while True:
        taken = office.wait_for_report(SnapshotTaken)
        if taken.adapter == adapter.id and LanePosition(lane=adapter.lane, next_seq=seq) in taken.lanes:
            return taken


def kill_and_recover(office: Office, trainer: Trainer, taken: SnapshotTaken, adapter: Adapter) -> Trainer:
    """As if everything since the snapshot had never reached the disk."""
    stop(office, trainer)
    office.reports.clear()
    again, _ = start(office)
    asked = RecoverAdapter(adapter=adapter.id, snapshot=taken.snapshot, lanes=taken.lanes)
    assert office.ask(asked, Recovered).step == taken.step
    adapter.seq = next(each.next_seq for each in taken.lanes if each.lane == adapter.lane) - 1
    return again


def test_a_trainer_that_goes_on_from_a_snapshot_inside_a_window_ends_with_the_same_bits(
    open_office: Serve,
) -> None:
    office = open_office(SOON)
    trainer, _ = start(office)
    whole, adapter = create(office, "whole"), create(office, "poet", seed=4)
    for each in (whole, adapter):
        each.forward_backward(1)
        each.step()
        each.forward_backward(2)
    taken = newest(office, adapter, seq=4)
    for each in (whole, adapter):
        each.forward_backward(3)
        each.step()
    expected = last(whole)
    adapter.forward_backward(5)
    adapter.step()

    again = kill_and_recover(office, trainer, taken, adapter)
    adapter.forward_backward(3)
    step = adapter.step()

    assert taken.step == 1
    assert (step.step, step.tokens) == (2, 24)
    assert same(last(adapter), expected)
    stop(office, again)


def test_a_snapshot_writes_what_changed_and_a_stop_what_is_left(open_office: Serve) -> None:
    office = open_office(SOON)
    trainer, _ = start(office)
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    first = newest(office, adapter, seq=2)
    adapter.forward_backward(2)
    second = newest(office, adapter, seq=3)
    adapter.step()
    stop(office, trainer)
    third = newest(office, adapter, seq=4)

    def inode(taken: SnapshotTaken, piece: str) -> int:
        return (office.layout.snapshots(adapter.id) / taken.snapshot / f"{piece}.safetensors").stat().st_ino

    assert inode(first, "main") == inode(second, "main") != inode(third, "main")
    assert inode(first, "gradients") != inode(second, "gradients")
    assert len({first.digest, second.digest, third.digest}) == 3
    assert (first.step, second.step, third.step) == (0, 0, 1)


def test_what_the_journal_has_lets_what_is_older_go(serve: Serve) -> None:
    office = serve(SOON)
    adapter = create(office, "poet")
    taken = []
    for data in range(4):
        adapter.forward_backward(data)
        taken.append(newest(office, adapter, seq=data + 2))
        office.tell(KeepSnapshot(adapter=adapter.id, snapshot=taken[-1].snapshot))

    adapter.step()  # the trainer has read all that came before

    names = {path.name for path in office.layout.snapshots(adapter.id).iterdir()}
    assert {each.snapshot for each in taken[2:]} <= names
    assert not {each.snapshot for each in taken[:2]} & names


def test_a_load_is_told_as_a_snapshot_and_needs_what_it_read_no_more(open_office: Serve) -> None:
    office = open_office()
    trainer, _ = start(office)
    source, heir = create(office, "source"), create(office, "heir", seed=9)
    source.forward_backward(1)
    source.step()
    source.run(SaveCheckpoint, CheckpointSaved, name="one")
    expected = last(source)

    heir.run(LoadCheckpoint, StateLoaded, source=source.id, name="one")
    taken = newest(office, heir, seq=2)
    office.ask(DeleteCheckpoint(adapter=source.id, name="one"), Done)
    heir.forward_backward(5)
    heir.step()

    again = kill_and_recover(office, trainer, taken, heir)

    assert taken.step == 1
    assert same(last(heir), expected)
    stop(office, again)


@pytest.mark.parametrize("piece", ["main", "exp_avg"])
def test_a_damaged_snapshot_is_refused_and_the_one_before_it_is_there(open_office: Serve, piece: str) -> None:
    office = open_office(SOON)
    trainer, _ = start(office)
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    adapter.step()
    adapter.forward_backward(2)
    before = newest(office, adapter, seq=4)
    adapter.step()
    adapter.forward_backward(3)
    damaged = newest(office, adapter, seq=6)
    stop(office, trainer)
    file = office.layout.snapshots(adapter.id) / damaged.snapshot / f"{piece}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    trainer, _ = start(office)

    def recover(snapshot: str) -> Message:
        return office.wait(
            office.send(RecoverAdapter(adapter=adapter.id, snapshot=snapshot, lanes=before.lanes))
        )

    refused, gone, there = recover(damaged.snapshot), recover("77"), recover(before.snapshot)
    beginning = recover("")

    assert [getattr(each, "code", None) for each in (refused, gone)] == ["checkpoint_mismatch"] * 2
    assert piece in refused.message  # type: ignore[attr-defined]
    assert (there, beginning) == (Recovered(step=1), Recovered(step=0))
    stop(office, trainer)


def test_snapshots_that_the_journal_does_not_have_do_not_pile_up(open_office: Serve) -> None:
    office = open_office(SOON)
    trainer, _ = start(office)
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    first = newest(office, adapter, seq=2)
    taken = []
    for seq in (3, 4, 5):
        adapter.forward_backward(seq)
        taken.append(newest(office, adapter, seq=seq).snapshot)

    back = RecoverAdapter(adapter=adapter.id, snapshot=first.snapshot, lanes=first.lanes)
    office.ask(back, Recovered)

    left = {path.name for path in office.layout.snapshots(adapter.id).iterdir()}
    assert left == {first.snapshot, *taken[-2:]}
    stop(office, trainer)


def test_a_trainer_that_dies_as_it_tells_of_a_snapshot_takes_the_next_under_a_fresh_number(
    open_office: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = open_office(SOON)
    monkeypatch.setenv("LORACTL_CRASH_AT", "snapshot.reported")
    process = start_process(office)
    monkeypatch.undo()
    office.wait_for_report(ActorReady)
    adapter = create(office, "poet")
    office.send(pass_over(1, **adapter.next()))
    assert process.wait(60) == -signal.SIGKILL
    assert [path.name for path in office.layout.snapshots(adapter.id).iterdir()] == ["1"]
    office.reports.clear()
    trainer, _ = start(office)

    beginning = (LanePosition(lane=adapter.lane, next_seq=1),)
    office.ask(RecoverAdapter(adapter=adapter.id, snapshot="", lanes=beginning), Recovered)
    adapter.seq = 0
    adapter.forward_backward(1)

    while (taken := newest(office, adapter, seq=2)).snapshot == "1":
        pass  # the first may have left the process before its end

    assert taken.snapshot == "2"
    assert adapter.step().tokens == 12
    stop(office, trainer)


def test_without_a_journal_only_a_stop_a_load_and_a_leave_write_any(open_office: Serve) -> None:
    office = open_office("journal.enabled=false", "journal.snapshot_s=0.01", SOON)
    trainer, _ = start(office)
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    adapter.step()
    last(adapter)

    assert not office.layout.snapshots(adapter.id).exists()
    stop(office, trainer)
    assert len(list(office.layout.snapshots(adapter.id).iterdir())) == 1


# --- between two turns, by hand ----------------------------------------------------------------------


class HeldDisk(DiskJobs):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__(alive=lambda: None, strand=Strand())
        self.waiting: list[tuple[Callable[[], object], Future[object]]] = []

    def behind(self, work: Callable[[], object], what: str) -> Future[object]:  # type: ignore[override]
        self.waiting.append((work, Future()))
        return self.waiting[-1][1]

    def write(self, *, trouble: Exception | None = None) -> None:
        work, future = self.waiting.pop(0)
        if trouble is not None:
            future.set_exception(trouble)
        else:
            future.set_result(work())


class FaultyEngine(TrainEngine):
    """Has a bug that some adapters' snapshots meet."""

    faulty_for: set[AdapterId]

    def snapshot_tensors(
        self, capture: Capture, pieces: Mapping[Piece, Tensor], present: Collection[Piece]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
        if capture.record.adapter in self.faulty_for:
            raise ZeroDivisionError
        return super().snapshot_tensors(capture, pieces, present)


class Bench:
    """An adapter, its lanes and its snapshots, without the loop."""

    def __init__(self, office: Office) -> None:
        self.engine = FaultyEngine.build(office.config)
        self.engine.faulty_for = set()
        self.adapters = Adapters.open(office.config, office.layout, self.engine)
        self.lanes = Lanes(gap_timeout_s=60.0, kept_bytes=1000)
        self.disk = HeldDisk()
        self.boundary = Boundary()
        self.reports: list[SnapshotTaken] = []
        self.answers: list[Answer] = []
        self.snapshots = Snapshotting(
            office.config,
            "trainer",
            adapters=self.adapters,
            lanes=self.lanes,
            jobs=self.disk,
            boundary=self.boundary,
            report=self._report,
            answer=self._answer,
        )
        lora = LoraSpec(rank=4, alpha=8.0, seed=1)
        self.poet = self.adapters.create(LOCAL_TENANT, "poet", lora)
        self.lanes.open(self.poet.id, LaneId("first"))
        self._operations = Operations(office.config, self.engine, self.adapters)

    def turn(self, now: float) -> None:
        self.snapshots.settle(now)
        self.snapshots.turn(now)

    def _report(self, body: Message) -> None:
        assert isinstance(body, SnapshotTaken)
        self.reports.append(body)

    def _answer(self, answers: Sequence[Answer]) -> None:
        self.answers += answers

    def operate(self, now: float, adapter: LiveAdapter | None = None) -> None:
        """An operation ended; only what the adapter's window tells of it matters here."""
        adapter = adapter or self.poet
        adapter.happened(Event.GATHERED, lane=LaneId("first"))
        self.snapshots.ended(pass_over(1, adapter=adapter.id, lane=LaneId("first"), seq=1), now)

    def begin_load(self) -> None:
        """Of a checkpoint of now, which the disk's thread begins to read."""
        state = self.adapters.residents.state(self.poet.id)
        moments = {"exp_avg": state.main + 1.0, "exp_avg_sq": state.main + 1.0}
        saved = replace(state, step=7, main=state.main + 1.0, gradients=None, **moments)
        self.adapters.states.checkpoint(self.poet, "one", saved)
        load = LoadCheckpoint(
            adapter=self.poet.id, lane=LaneId("first"), seq=2, source=self.poet.id, name="one"
        )
        later = self._operations.run(LOCAL_TENANT, RequestId("load"), load)
        assert isinstance(later, Later)
        self.disk.submit(Queued(load, b"", []), later)

    def end_load(self, now: float) -> None:
        job = self.disk.take_done(wait=True)
        assert job is not None
        assert job.outcome() == StateLoaded(step=7)
        self.snapshots.ended(job.queued.operation, now)


@pytest.fixture
def bench(open_office: Serve) -> Bench:
    return Bench(open_office("trainer.slots=1"))


def test_lanes_that_opened_while_it_was_written_are_told_from_their_beginning(bench: Bench) -> None:
    bench.operate(0.0)
    bench.turn(29.0)
    assert not bench.disk.waiting

    bench.turn(30.0)
    bench.lanes.open(bench.poet.id, LaneId("second"))
    bench.turn(31.0)
    assert not bench.reports
    bench.disk.write()
    bench.turn(32.0)

    [taken] = bench.reports
    assert {(each.lane, each.next_seq) for each in taken.lanes} == {("first", 1), ("second", 1)}
    assert not bench.disk.waiting, "nothing happened since"


def test_one_is_written_at_a_time_and_an_adapter_goes_on_meanwhile(bench: Bench) -> None:
    bench.operate(0.0)
    bench.turn(30.0)
    bench.operate(31.0)

    bench.turn(90.0)
    assert len(bench.disk.waiting) == 1
    bench.disk.write()
    bench.turn(91.0)
    bench.disk.write()
    bench.turn(92.0)

    assert [taken.snapshot for taken in bench.reports] == ["1", "2"]


def test_a_full_disk_delays_a_snapshot_and_nothing_else(bench: Bench) -> None:
    bench.operate(0.0)
    bench.turn(30.0)
    bench.disk.write(trouble=StorageFailed("the disk is full"))
    bench.turn(31.0)
    assert not bench.disk.waiting

    bench.turn(31.0 + RETRY_S)
    bench.disk.write()
    bench.turn(50.0)

    assert [taken.snapshot for taken in bench.reports] == ["1"]
    assert not bench.poet.changed


def test_who_leaves_comes_before_who_is_due(bench: Bench) -> None:
    bench.operate(0.0)
    other = bench.adapters.create(LOCAL_TENANT, "other", LoraSpec(rank=4, alpha=8.0, seed=2))
    asked = Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=UnloadAdapter(adapter=other.id))

    bench.snapshots.unload(other, asked)
    bench.turn(60.0)
    bench.disk.write()
    bench.turn(61.0)

    assert [taken.adapter for taken in bench.reports] == [other.id]
    assert [answer.body for answer in bench.answers] == [Done()]
    assert len(bench.disk.waiting) == 1


# --- loads ---------------------------------------------------------------------------------------------


def test_none_is_begun_of_an_adapter_that_is_being_loaded_and_others_are(bench: Bench) -> None:
    other = bench.adapters.create(LOCAL_TENANT, "other", LoraSpec(rank=4, alpha=8.0, seed=2))
    bench.operate(0.0)
    bench.operate(1.0, other)
    bench.begin_load()

    assert bench.snapshots.next_due() == 31.0
    bench.turn(30.0)
    assert not bench.disk.waiting
    bench.turn(31.0)
    bench.disk.write()
    bench.turn(32.0)
    bench.end_load(33.0)
    bench.turn(60.0)

    assert [(taken.adapter, taken.step) for taken in bench.reports] == [(other.id, 0), (bench.poet.id, 7)]
    assert not bench.disk.waiting, "the load's own holds all"
    assert bench.poet.snapshot == bench.adapters.snapshots.newest(bench.poet.id)


@pytest.mark.parametrize("trouble", [None, StorageFailed("the disk is full")])
def test_a_copy_from_before_a_load_is_told_to_nobody_and_found_by_nobody(
    bench: Bench, trouble: Exception | None
) -> None:
    bench.operate(0.0)
    bench.turn(30.0)
    bench.begin_load()
    bench.end_load(31.0)
    loaded = bench.poet.snapshot

    bench.disk.write(trouble=trouble)
    bench.turn(32.0)
    bench.turn(60.0)

    assert loaded is not None
    assert [taken.snapshot for taken in bench.reports] == [loaded.name]
    assert bench.adapters.snapshots.all(bench.poet.id) == [loaded]
    assert (bench.poet.snapshot, bench.poet.changed) == (loaded, set())
    assert not bench.disk.waiting, "nothing is owed"


def test_what_comes_behind_a_load_is_linked_to_it(bench: Bench) -> None:
    bench.operate(0.0)
    bench.turn(30.0)
    bench.disk.write()
    bench.operate(31.0)
    bench.begin_load()
    bench.turn(70.0)
    bench.end_load(71.0)
    slot = bench.adapters.residents.place(bench.poet.id)
    expected = bench.engine.bank.row(slot).main.clone()
    for taken in bench.reports:
        bench.snapshots.keep(KeepSnapshot(adapter=bench.poet.id, snapshot=taken.snapshot))

    bench.operate(72.0)
    bench.turn(110.0)
    bench.disk.write()
    bench.turn(111.0)

    record = bench.adapters.snapshots.find(bench.poet.id, bench.reports[-1].snapshot)
    assert bool((bench.adapters.states.read(record, bench.poet.record).main == expected).all())
    assert record.step == 7


def test_who_left_is_taken_up_from_the_newest_snapshot_though_the_one_it_left_with_is_gone(
    bench: Bench,
) -> None:
    bench.operate(0.0)
    bench.turn(30.0)
    bench.disk.write()
    bench.turn(31.0)
    bench.snapshots.keep(KeepSnapshot(adapter=bench.poet.id, snapshot="1"))
    asked = Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=UnloadAdapter(adapter=bench.poet.id))
    bench.snapshots.unload(bench.poet, asked)
    bench.turn(40.0)
    bench.disk.write()
    bench.turn(41.0)

    bench.turn(80.0)  # the journal did not say that it has that one
    bench.disk.write()
    bench.turn(81.0)
    for taken in bench.reports[2:]:
        bench.snapshots.keep(KeepSnapshot(adapter=bench.poet.id, snapshot=taken.snapshot))
    bench.adapters.take_up(bench.poet)

    assert [taken.snapshot for taken in bench.reports] == ["1", "2", "3"]
    assert bench.adapters.residents.state(bench.poet.id).step == 0


# --- bugs ----------------------------------------------------------------------------------------------


def test_a_bug_as_one_is_written_leaves_all_that_it_was_to_hold(bench: Bench) -> None:
    bench.operate(0.0)
    bench.turn(30.0)

    bench.disk.write(trouble=ZeroDivisionError())
    bench.turn(31.0)

    assert bench.boundary.broken
    assert bench.boundary.suspects == {bench.poet.id}
    assert bench.poet.changed == {"main"}, "it has nothing else yet"
    assert not bench.disk.waiting
    bench.boundary.suspects.clear()
    bench.snapshots.close(Done())
    bench.snapshots.take_last(time.monotonic())
    assert [taken.adapter for taken in bench.reports] == [bench.poet.id]


def test_a_bug_with_one_of_the_last_snapshots_leaves_the_others(bench: Bench) -> None:
    others = [
        bench.adapters.create(LOCAL_TENANT, name, LoraSpec(rank=4, alpha=8.0, seed=2)) for name in ("a", "b")
    ]
    for now, adapter in enumerate((others[0], bench.poet, others[1])):
        bench.operate(float(now), adapter)
    bench.engine.faulty_for.add(bench.poet.id)

    bench.snapshots.close(Done())
    bench.snapshots.take_last(time.monotonic())

    assert [taken.adapter for taken in bench.reports] == [others[1].id, others[0].id]
    assert bench.boundary.suspects == {bench.poet.id}


def test_files_of_a_snapshot_are_of_the_state_when_it_was_taken(bench: Bench) -> None:
    bench.operate(0.0)
    slot = bench.adapters.residents.place(bench.poet.id)
    row = bench.engine.bank.row(slot)
    before = row.main.clone()
    bench.turn(30.0)

    row.main.add_(1.0)
    bench.disk.write()

    record = bench.adapters.snapshots.newest(bench.poet.id)
    assert record is not None
    assert bool((bench.adapters.states.read(record, bench.poet.record).main == before).all())
