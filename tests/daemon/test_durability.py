"""Nothing runs before it is written down, nothing is told before its outcome is, nothing runs twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from loractl.bus.codec import encode, peek
from loractl.bus.config import Config
from loractl.bus.errors import RequestConflict
from loractl.bus.ids import AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    CreateAdapter,
    DeleteAdapter,
    Done,
    Envelope,
    Failed,
    ForwardBackward,
    KeepSnapshot,
    LanePosition,
    Message,
    OpenLane,
    RecoverAdapter,
    RefuseOperation,
    SaveCheckpoint,
    SkipOperation,
    SnapshotTaken,
    Waiting,
)
from loractl.daemon.decisions import Tell, WriteDown
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
from loractl.tests.daemon.office import ALICE, BEN, LORA, TRAINER


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


def test_a_request_is_forwarded_once_it_is_written_down(office: JournalledOffice) -> None:
    adapter, lane = created(office)

    decisions = office.ask(gather(adapter, lane, 1), request="f1")

    assert [type(each) for each in decisions] == [WriteDown]
    assert [each.kind for each in forwarded(office.settled(decisions))] == [ForwardBackward.kind]
    assert [each.key for each in office.store.unfinished()] == [(ALICE, "f1")]


def test_an_outcome_is_told_once_it_is_written_down(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))

    decisions = office.answer(TRAINER, stepped(1), request="s1")

    assert told(decisions) == []
    assert told(office.settled(decisions)) == [stepped(1)]


def test_a_resend_after_a_restart_reads_the_first_outcome(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    office.settled(office.answer(TRAINER, stepped(1), request="s1"))

    again = office.restarted()

    assert told(again.ask(step(adapter, lane, 1), request="s1", client=BEN)) == [stepped(1)]
    with pytest.raises(RequestConflict):
        again.ask(step(adapter, lane, 2), request="s1")


def test_what_was_unfinished_runs_after_a_restart_and_answers_whoever_asks_again(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))

    again = office.restarted()
    assert [type(each) for each in told(again.ask(step(adapter, lane, 1), request="s1", client=BEN))] == []
    begun = forwarded(again.settled(again.ready(TRAINER)))
    assert begun == [
        RecoverAdapter(adapter=adapter, snapshot="", lanes=(LanePosition(lane=lane, next_seq=1),))
    ]
    sent = forwarded(recover(again))

    assert sent == [step(adapter, lane, 1)]
    assert told(again.settled(again.answer(TRAINER, stepped(1), request="s1"))) == [stepped(1)]


def test_a_dead_trainer_costs_a_pause_what_had_ended_runs_again_and_what_had_not_runs(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(gather(adapter, lane, 1), request="f1"))
    office.settled(office.answer(TRAINER, passed(), request="f1"))
    office.settled(office.ask(SaveCheckpoint(adapter=adapter, lane=lane, seq=2, name="a"), request="c2"))
    office.settled(office.answer(TRAINER, Done(), request="c2"))
    refused = RefuseOperation(adapter=adapter, lane=lane, seq=3, code="invalid_data", message="no")
    office.settled(office.ask(refused, request="r3"))
    failure = Failed(code="invalid_data", message="no", retryable=False, fault="user")
    office.settled(office.answer(TRAINER, failure, request="r3"))
    office.settled(office.ask(step(adapter, lane, 4), request="s4"))

    lost = office.settled(office.lose(TRAINER))
    assert [type(each) for each in told(lost)] == [Waiting]
    office.settled(office.ready(TRAINER))
    replayed = forwarded(recover(office))

    assert replayed[0].kind == ForwardBackward.kind
    assert replayed[1:] == [SkipOperation(adapter=adapter, lane=lane, seq=2), refused]
    office.settled(office.answer(TRAINER, passed(), request="f1"))
    office.settled(office.answer(TRAINER, Done(), request="c2"))
    last = office.settled(office.answer(TRAINER, failure, request="r3"))
    assert forwarded(last) == [step(adapter, lane, 4)]
    assert told(office.settled(office.answer(TRAINER, stepped(1), request="s4"))) == [stepped(1)]


def test_a_snapshot_counts_once_it_is_written_down_and_shortens_what_runs_again(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    for seq in (1, 2):
        office.settled(office.ask(step(adapter, lane, seq), request=f"s{seq}"))
        office.settled(office.answer(TRAINER, stepped(seq), request=f"s{seq}"))
    taken = SnapshotTaken(
        actor="trainer",
        adapter=adapter,
        snapshot="7",
        lanes=(LanePosition(lane=lane, next_seq=2),),
        step=1,
        digest="00",
    )

    kept = office.settled(office.report(TRAINER, taken))
    assert [each.envelope.body for each in kept if isinstance(each, Tell)] == [
        KeepSnapshot(adapter=adapter, snapshot="7")
    ]
    office.settled(office.lose(TRAINER))
    asked = forwarded(office.settled(office.ready(TRAINER)))
    assert asked == [RecoverAdapter(adapter=adapter, snapshot="7", lanes=taken.lanes)]
    assert forwarded(recover(office)) == [step(adapter, lane, 2)]


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    office.settled(office.answer(TRAINER, stepped(1), request="s1"))
    taken = SnapshotTaken(
        actor="trainer",
        adapter=adapter,
        snapshot="1",
        lanes=(LanePosition(lane=lane, next_seq=2),),
        step=1,
        digest="",
    )
    office.settled(office.report(TRAINER, taken))
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))

    damaged = Failed(code="checkpoint_mismatch", message="it is damaged", retryable=False, fault="user")
    asked = forwarded(recover(office, body=damaged))

    assert asked == [
        RecoverAdapter(adapter=adapter, snapshot="", lanes=(LanePosition(lane=lane, next_seq=1),))
    ]
    assert forwarded(recover(office, number=2)) == [step(adapter, lane, 1)]


def test_an_operation_that_kills_the_trainer_twice_is_quarantined_and_the_others_go_on(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    for life in (1, 2):
        lost = office.broker.lost(
            TRAINER, for_good=False, details="", now=office.now, in_hand=[(ALICE, "s1")]
        )
        heard = told(office.settled(lost))
        office.settled(office.ready(TRAINER))
        sent = forwarded(recover(office, number=life))

    assert [each.code for each in heard if isinstance(each, Failed)] == ["quarantined"]
    assert [each.kind for each in sent] == ["refuse_operation"]
    failure = Failed(code="quarantined", message="", retryable=False, fault="user")
    assert forwarded(office.settled(office.answer(TRAINER, failure, request="s1"))) == [
        step(adapter, lane, 2)
    ]


def test_a_trainer_that_dies_while_it_loads_speaks_against_no_operation(office: JournalledOffice) -> None:
    """The note still says what the one before it was at."""
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))

    heard: list[Message] = []
    for _ in range(5):
        lost = office.broker.lost(
            TRAINER, for_good=False, details="", now=office.now, in_hand=[(ALICE, "s1")]
        )
        heard += told(office.settled(lost))
        office.broker.spawned(TRAINER, pid=1, restarts=1)

    assert {each.kind for each in heard} == {"waiting"}
    assert office.store.unfinished()[0].crashes == 2


def test_a_deletion_that_runs_again_after_a_crash_is_done(office: JournalledOffice) -> None:
    adapter, _ = created(office)
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d"))
    office.settled(office.lose(TRAINER))
    office.settled(office.ready(TRAINER))
    gone = Failed(code="adapter_not_found", message="", retryable=False, fault="user")
    assert [each.kind for each in forwarded(recover(office, body=gone))] == ["delete_adapter"]

    assert told(office.settled(office.answer(TRAINER, gone, request="d"))) == [Done()]
    assert office.store.unfinished() == []


def test_a_request_that_the_journal_cannot_take_is_refused_and_never_runs(office: JournalledOffice) -> None:
    adapter, lane = created(office)

    decisions = office.settled(office.ask(step(adapter, lane, 1), request="s1"), refused="no space left")

    assert forwarded(decisions) == []
    (answer,) = told(decisions)
    assert isinstance(answer, Failed)
    assert (answer.code, "no space left" in answer.message) == ("storage_failed", True)
    assert forwarded(office.settled(office.ask(step(adapter, lane, 1), request="s1"))) == [
        step(adapter, lane, 1)
    ]


def test_a_stop_leaves_what_did_not_run_to_the_next_start(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))
    office.settled(office.broker.drain(office.now))
    parting = Failed(code="actor_stopping", message="it stops", retryable=True, fault="server")

    heard = told(office.settled(office.answer(TRAINER, parting, request="s1")))

    assert [each.code for each in heard if isinstance(each, Failed)] == ["actor_stopping"]
    again = office.restarted()
    again.settled(again.ready(TRAINER))
    assert forwarded(recover(again)) == [step(adapter, lane, 1)]


@pytest.mark.parametrize(
    "place", [{"seq": 2**63}, {"lane": LaneId("l" * 129)}, {"adapter": AdapterId("a" * 129)}]
)
def test_a_place_that_cannot_be_written_down_is_refused_before_it_is(
    office: JournalledOffice, place: dict[str, Any]
) -> None:
    adapter, lane = created(office)

    (refused,) = told(office.ask(replace(step(adapter, lane, 1), **place)))

    assert isinstance(refused, Failed)
    assert "63 bits" in refused.message
    assert forwarded(office.settled(office.ask(step(adapter, lane, 1)))) == [step(adapter, lane, 1)]


@pytest.mark.parametrize(
    "request_", [CreateAdapter(name="pirate", lora=LORA), OpenLane(adapter=AdapterId("ad-1"))]
)
def test_a_request_that_lacks_what_the_broker_fills_in_is_refused_and_forgotten(
    office: JournalledOffice, request_: Message
) -> None:
    frames = encode(Envelope(request=RequestId("r1"), tenant=ALICE, body=request_))
    header = msgpack.unpackb(frames[0])
    del header["f"]["lane"]
    broken = [msgpack.packb(header)]

    for _ in range(2):
        refused = told(office.broker.request(BEN, peek(broken[0], Config().limits), broken, office.now))
        assert [each.code for each in refused if isinstance(each, Failed)] == ["bad_frame"]
