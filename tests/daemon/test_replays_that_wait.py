"""What a replay has to wait for, and which snapshots count meanwhile: nothing acknowledged is left out, nothing that was
undone comes back."""

from pathlib import Path

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    Done,
    Failed,
    ForwardBackward,
    LaneOpened,
    LanePosition,
    Message,
    OpenLane,
    RecoverAdapter,
    RefuseOperation,
    SnapshotTaken,
    UnloadAdapter,
    UnloadAgain,
    Waiting,
)
from loractl.daemon.decisions import Frames
from loractl.tests.daemon.journalled_office import (
    JournalledOffice,
    created,
    forwarded,
    gather,
    passed,
    recover,
    step,
    stepped,
    told,
)
from loractl.tests.daemon.office import LORA, TRAINER, details_of


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


def test_an_unload_between_what_runs_again_does_so_alone_and_leaves_the_lanes_opened_since(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(gather(adapter, lane, 1), request="f1"))
    office.settled(office.answer(TRAINER, passed(), request="f1"))
    office.settled(office.ask(UnloadAdapter(adapter=adapter), request="u"))
    office.settled(office.answer(TRAINER, Done(), request="u"))
    (opening,) = forwarded(office.settled(office.ask(OpenLane(adapter=adapter), request="o")))
    assert isinstance(opening, OpenLane)
    opened = LaneOpened(details=details_of(adapter), lane=opening.lane)
    office.settled(office.answer(TRAINER, opened, request="o"))
    office.settled(office.ask(step(adapter, opening.lane, 1), request="s1"))
    office.settled(office.answer(TRAINER, stepped(1), request="s1"))

    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))
    first = forwarded(recover(office))
    second = forwarded(office.settled(office.answer(TRAINER, passed(), request="f1")))
    third = forwarded(office.settled(office.answer(TRAINER, Done(), request="u")))

    assert [each.kind for each in first] == [ForwardBackward.kind]
    assert second == [UnloadAgain(adapter=adapter, lanes=(LanePosition(lane=opening.lane, next_seq=1),))]
    assert third == [step(adapter, opening.lane, 1)]


def unloaded(office: JournalledOffice, *, refused: str = "") -> AdapterId:
    """An adapter that was unloaded while its window was open. refused: why the journal did not take that."""
    adapter, lane = created(office)
    office.settled(office.ask(gather(adapter, lane, 1), request="f1"))
    office.settled(office.answer(TRAINER, passed(), request="f1"))
    office.settled(office.ask(UnloadAdapter(adapter=adapter), request="u"))
    heard = told(office.settled(office.answer(TRAINER, Done(), request="u"), refused=refused))
    assert [type(each) for each in heard] == [Waiting if refused else Done]
    return adapter


def trainer_dies_and_room_returns(
    office: JournalledOffice,
) -> tuple[list[Message], list[Message], list[Message]]:
    """What the next trainer gets before there is room on the disk, what clients hear once there is, and what the
    trainer gets then."""
    office.settled(office.lose(TRAINER))
    before = forwarded(office.settled(office.ready(TRAINER)))
    office.now = office.broker.next_deadline()
    heard = told(office.settled(office.broker.tick(office.now)))
    office.now += 60.0
    return before, heard, forwarded(office.settled(office.broker.tick(office.now)))


def test_a_snapshot_from_before_an_unload_that_runs_again_does_not_count(office: JournalledOffice) -> None:
    adapter = unloaded(office)
    taken = SnapshotTaken(actor="trainer", adapter=adapter, snapshot="3", lanes=(), step=0, digest="")
    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))
    recover(office)
    office.settled(office.report(TRAINER, taken))
    (again,) = forwarded(office.settled(office.answer(TRAINER, passed(), request="f1")))
    office.settled(office.report(TRAINER, taken))

    assert again == UnloadAgain(adapter=adapter, lanes=())
    assert office.store.snapshot(adapter) is None
    office.settled(office.answer(TRAINER, Done(), request="u"))
    office.settled(office.report(TRAINER, taken))
    assert office.store.snapshot(adapter) is not None


def coming_back(office: JournalledOffice) -> tuple[AdapterId, LaneId]:
    """An adapter of two steps, which a new trainer is asked for."""
    adapter, lane = created(office)
    for seq in (1, 2):
        office.settled(office.ask(step(adapter, lane, seq), request=f"s{seq}"))
        office.settled(office.answer(TRAINER, stepped(seq), request=f"s{seq}"))
    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))
    return adapter, lane


@pytest.mark.parametrize("code", ["out_of_slots", "storage_failed", "internal", "invalid_data"])
def test_a_snapshot_does_not_count_once_what_runs_again_failed(office: JournalledOffice, code: str) -> None:
    adapter, lane = coming_back(office)
    recover(office)
    failure = Failed(code=code, message="no", retryable=code != "invalid_data", fault="server")
    office.settled(office.answer(TRAINER, failure, request="s1"))
    past = (LanePosition(lane=lane, next_seq=3),)
    taken = SnapshotTaken(actor="trainer", adapter=adapter, snapshot="3", lanes=past, step=1, digest="")

    office.settled(office.report(TRAINER, taken))

    assert office.store.snapshot(adapter) is None


def test_an_adapter_whose_unload_the_journal_could_not_take_waits_for_that(office: JournalledOffice) -> None:
    adapter = unloaded(office, refused="no space left")

    before, heard, after = trainer_dies_and_room_returns(office)

    assert (before, heard) == ([], [Done()])
    assert [each.kind for each in after] == [RecoverAdapter.kind]
    assert [each.kind for each in forwarded(recover(office))] == [ForwardBackward.kind]
    assert forwarded(office.settled(office.answer(TRAINER, passed(), request="f1"))) == [
        UnloadAgain(adapter=adapter, lanes=())
    ]


def test_what_failed_does_not_run_again_where_the_journal_could_not_take_that_yet(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    failure = Failed(code="invalid_data", message="no", retryable=False, fault="user")
    office.settled(office.answer(TRAINER, failure, request="s1"), refused="no space left")

    before, heard, after = trainer_dies_and_room_returns(office)

    assert (before, heard) == ([], [failure])
    assert [each.kind for each in after] == [RecoverAdapter.kind]
    assert [each.kind for each in forwarded(recover(office))] == [RefuseOperation.kind]


def test_what_succeeded_on_another_try_is_waited_for_until_the_journal_has_that(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    lane_lost = Failed(code="lane_lost", message="no", retryable=True, fault="user")
    office.settled(office.answer(TRAINER, lane_lost, request="s1"))
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    office.settled(office.answer(TRAINER, stepped(1), request="s1"), refused="no space left")

    before, heard, after = trainer_dies_and_room_returns(office)

    assert (before, heard) == ([], [stepped(1)])
    assert [each.kind for each in after] == [RecoverAdapter.kind]
    assert forwarded(recover(office)) == [step(adapter, lane, 1)]


@pytest.mark.parametrize("when", ["recovered", "ran again"])
def test_what_cannot_be_read_again_for_now_puts_its_adapter_off_and_then_runs(
    office: JournalledOffice, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    adapter, lane = coming_back(office)
    office.settled(office.ask(step(adapter, lane, 3), request="s3"))
    if when == "ran again":
        recover(office)
    with monkeypatch.context() as broken:
        broken.setattr(office.store, "outcome", unreadable)
        heard = (
            recover(office)
            if when == "recovered"
            else office.settled(office.answer(TRAINER, stepped(1), request="s1"))
        )

    assert [each.reason for each in told(heard) if isinstance(each, Waiting)] != []
    office.now = office.broker.next_deadline()
    again = forwarded(office.settled(office.broker.tick(office.now)))
    assert [each.kind for each in again] == [RecoverAdapter.kind]
    assert forwarded(recover(office, number=2)) == [step(adapter, lane, 1), step(adapter, lane, 2)]
    office.settled(office.answer(TRAINER, stepped(1), request="s1"))
    assert forwarded(office.settled(office.answer(TRAINER, stepped(2), request="s2"))) == [
        step(adapter, lane, 3)
    ]


def unreadable(_number: int) -> Frames:
    raise StorageFailed("the journal's file cannot be read")


def test_what_runs_again_after_a_failure_is_kept_by_the_journal_meanwhile(office: JournalledOffice) -> None:
    asked = CreateAdapter(name="pirate", lora=LORA)
    (sent,) = forwarded(office.settled(office.ask(asked, request="c")))
    assert isinstance(sent, CreateAdapter)
    full = Failed(code="quota_exceeded", message="no", retryable=True, fault="user")
    office.settled(office.answer(TRAINER, full, request="c"))
    assert office.store.retried == set()

    again = office.settled(office.ask(asked, request="c"))

    assert forwarded(again) == [sent]
    assert len(office.store.retried) == 1
    reply = AdapterCreated(details=details_of(sent.adapter), lane=sent.lane)
    office.settled(office.answer(TRAINER, reply, request="c"))
    assert office.store.begins(sent.adapter)


def test_what_the_journal_has_let_go_of_is_not_run_again_under_its_id(office: JournalledOffice) -> None:
    asked = CreateAdapter(name="pirate", lora=LORA)
    office.settled(office.ask(asked, request="c"))
    full = Failed(code="quota_exceeded", message="no", retryable=True, fault="user")
    office.settled(office.answer(TRAINER, full, request="c"))

    (failed,) = told(office.settled(office.ask(asked, request="c"), refused="gone"))

    assert isinstance(failed, Failed)
    assert failed.code == "storage_failed"


def test_what_cannot_be_read_again_for_another_try_keeps_its_outcome(
    office: JournalledOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CreateAdapter(name="pirate", lora=LORA)
    office.settled(office.ask(asked, request="c"))
    full = Failed(code="quota_exceeded", message="no", retryable=True, fault="user")
    office.settled(office.answer(TRAINER, full, request="c"))

    with monkeypatch.context() as broken:
        broken.setattr(office.store, "request", unreadable)
        (failed,) = told(office.settled(office.ask(asked, request="c")))

    assert isinstance(failed, Failed)
    assert failed.code == "storage_failed"
    assert len(forwarded(office.settled(office.ask(asked, request="c")))) == 1
