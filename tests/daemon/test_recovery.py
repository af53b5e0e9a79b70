"""What stands in the way of bringing adapters back: it passes, it ends at one adapter, and nobody else notices."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import (
    ActorRestarting,
    AnotherBase,
    Internal,
    InvalidData,
    LoractlError,
    OutOfSlots,
    StorageFailed,
)
from loractl.bus.failures import failed
from loractl.bus.ids import AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    AdapterDeleted,
    DeleteAdapter,
    Done,
    Failed,
    ForwardBackward,
    LanePosition,
    LoadCheckpoint,
    Message,
    RecoverAdapter,
    Recovered,
    SnapshotTaken,
    Waiting,
)
from loractl.bus.settings import JournalConfig
from loractl.daemon.decisions import Decision, Key, Publish, WriteDown
from loractl.daemon.harm import QUARANTINE
from loractl.daemon.journal.compaction import Compaction
from loractl.daemon.journal.records import Ended, Gone, Received
from loractl.daemon.replay import OURS
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
from loractl.tests.daemon.office import ALICE, BEN, BOB, SAMPLER, TRAINER, sample, small

A_LONG_TIME_S = 3600.0


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.come()
    return office


def trained(office: JournalledOffice, request: str = "f1") -> tuple[AdapterId, LaneId]:
    """An adapter with an operation that is to run again, under this id."""
    adapter, lane = created(office, f"c-{request}")
    office.settled(office.ask(gather(adapter, lane, 1), request=request))
    office.settled(office.answer(TRAINER, passed(), request=request))
    return adapter, lane


def asked(decisions: Sequence[Decision]) -> list[AdapterId]:
    """Which adapters the trainer is to bring back."""
    return [each.adapter for each in forwarded(decisions) if isinstance(each, RecoverAdapter)]


def codes(messages: Sequence[Message]) -> list[str]:
    return [each.code for each in messages if isinstance(each, Failed)]


def recovery_key(number: int) -> Key:
    return OURS, RequestId(f"recover-{number}")


# --- a trainer that is gone -----------------------------------------------------------------------


def test_a_snapshot_of_a_trainer_that_died_is_not_believed(office: JournalledOffice) -> None:
    """What it told of the operations in it may never have come."""
    adapter, lane = trained(office)
    lanes = (LanePosition(lane=lane, next_seq=2),)
    taken = SnapshotTaken(actor=TRAINER, adapter=adapter, snapshot="1", lanes=lanes, step=0, digest="")
    office.die()

    assert office.report(TRAINER, taken) == []

    office.come()
    assert office.report(TRAINER, taken) == []

    recover(office)
    assert [type(each) for each in office.report(TRAINER, taken)] == [WriteDown]


def test_only_the_trainers_own_answers_bring_an_adapter_back(office: JournalledOffice) -> None:
    adapter, _ = trained(office)
    office.die()
    assert asked(office.come()) == [adapter]

    assert recover(office, actor=SAMPLER) == []

    assert forwarded(recover(office)) != []


# --- what kills the trainer while it runs again ----------------------------------------------------


def test_an_adapter_that_kills_two_trainers_on_its_way_back_is_left_alone_and_others_go_on(
    office: JournalledOffice,
) -> None:
    good, bad = trained(office, "good"), trained(office, "bad")
    office.die()

    office.die(recovery_key(1 + asked(office.come()).index(bad[0])))
    assert {*asked(office.come())} == {good[0], bad[0]}
    recover(office, number=3)
    recover(office, number=4)
    office.die((ALICE, RequestId("bad")))

    assert asked(office.come()) == [good[0]]
    recover(office, number=5)
    office.settled(office.answer(TRAINER, passed(), request="good"))
    assert forwarded(office.settled(office.ask(step(*good, 2), request="s2"))) == [step(*good, 2)]
    (refused,) = told(office.settled(office.ask(step(*bad, 2), request="b2")))
    assert isinstance(refused, Failed)
    assert refused.code == "recovery_failed"
    assert "journal.retry_quarantined=true" in refused.message


def test_crashes_of_an_adapter_count_over_restarts_of_the_daemon(office: JournalledOffice) -> None:
    adapter, _ = trained(office)
    for _ in range(2):
        office = office.restarted()
        assert asked(office.come()) == [adapter]
        office.die(recovery_key(1))

    assert asked(office.restarted().come()) == []


def test_who_is_brought_back_begins_anew(office: JournalledOffice) -> None:
    trained(office)
    office.die()
    for life in (1, 2, 3):
        office.come()
        office.die(recovery_key(2 * life - 1))
        office.come()
        recover(office, number=2 * life)
        office.settled(office.answer(TRAINER, passed(), request="f1"))
        assert office.store.harmed() == {}
        office.die()


def test_a_weight_that_the_journal_refused_comes_late_and_undoes_no_newer_one(
    office: JournalledOffice,
) -> None:
    adapter, _ = trained(office)
    office.die()
    office.come()
    lost = office.broker.lost(
        TRAINER, for_good=False, details="signal 11", now=office.now, in_hand=(recovery_key(1),)
    )
    office.settled(lost, refused="full")
    office.come()
    office.die(recovery_key(2))
    assert office.store.harmed() == {adapter: QUARANTINE}

    office.now += 10.0
    office.settled(office.broker.tick(office.now))

    assert office.store.harmed() == {adapter: QUARANTINE}
    assert asked(office.restarted().come()) == []


def test_a_quarantined_adapter_is_tried_once_more_where_the_settings_say_so(office: JournalledOffice) -> None:
    adapter, _ = trained(office)
    office.die()
    for number in (1, 2):
        office.come()
        office.die(recovery_key(number))
    retry = replace(office.config, journal=replace(office.config.journal, retry_quarantined=True))

    again = office.restarted(retry)
    assert asked(again.come()) == [adapter]
    again.die(recovery_key(1))
    assert asked(again.come()) == []

    mended = again.restarted(retry)
    mended.come()
    recover(mended)
    mended.settled(mended.answer(TRAINER, passed(), request="f1"))
    assert asked(mended.restarted(office.config).come()) == [adapter]


def test_a_bug_in_what_runs_again_counts_as_a_death(office: JournalledOffice) -> None:
    """The trainer answers, and ends."""
    trained(office)
    office.die()
    for number in (1, 2):
        office.come()
        recover(office, number=number)
        office.settled(office.answer(TRAINER, failed(Internal("bug")), request="f1"))
        office.die()

    assert asked(office.come()) == []


def test_a_quarantined_adapter_can_be_deleted(office: JournalledOffice) -> None:
    adapter, lane = trained(office)
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    office.die()
    for number in (1, 2):
        office.come()
        office.die(recovery_key(number))
    office.come()

    delete = DeleteAdapter(adapter=adapter)
    assert forwarded(office.settled(office.ask(delete, request="d"))) == [delete]
    ended = office.settled(office.answer(TRAINER, Done(), request="d"))

    assert told(ended) == [Done()]
    assert forwarded(ended) == [step(adapter, lane, 2)]  # the trainer tells it that the adapter is gone
    assert office.store.harmed() == {}


def test_what_is_noted_twice_as_in_hand_counts_once(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))

    heard = told(office.die((ALICE, RequestId("s1")), (ALICE, RequestId("s1"))))

    assert codes(heard) == []
    assert office.store.unfinished()[0].crashes == 2


# --- what may pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageFailed("the disk is full"), OutOfSlots("no row is left")])
def test_what_may_pass_costs_a_recovery_no_try_and_who_waits_hears_of_it(
    office: JournalledOffice, error: LoractlError
) -> None:
    adapter, lane = trained(office)
    office.die()
    office.come()
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))

    for number in range(1, 7):
        (waits,) = told(recover(office, number=number, body=failed(error)))
        assert isinstance(waits, Waiting)
        assert error.message in waits.reason
        assert asked(office.settled(office.broker.tick(office.now))) == []
        office.now = office.broker.next_deadline()
        assert asked(office.settled(office.broker.tick(office.now))) == [adapter]

    recover(office, number=7)
    sent = office.settled(office.answer(TRAINER, passed(), request="f1"))
    assert forwarded(sent) == [step(adapter, lane, 2)]


def test_a_trainer_that_leaves_in_the_middle_is_waited_for(office: JournalledOffice) -> None:
    adapter, lane = trained(office)
    office.die()
    office.come()
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    recover(office)

    left = office.settled(office.answer(TRAINER, failed(ActorRestarting("it leaves")), request="f1"))

    assert left == []
    assert asked(office.settled(office.broker.tick(A_LONG_TIME_S))) == []
    office.die()
    assert asked(office.come()) == [adapter]


def test_what_cannot_be_done_again_is_given_up_after_three_tries(office: JournalledOffice) -> None:
    adapter, lane = trained(office)
    office.die()
    office.come()

    for number in (1, 2, 3):
        recover(office, number=number)
        office.settled(office.answer(TRAINER, failed(InvalidData("no such token")), request="f1"))

    assert codes(told(office.settled(office.ask(step(adapter, lane, 2), request="s2")))) == [
        "recovery_failed"
    ]


def test_with_another_base_model_nothing_ends_and_everything_waits(office: JournalledOffice) -> None:
    adapter, lane = trained(office)
    office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    elsewhere = failed(AnotherBase("it belongs to base model 'tiny'"))
    wrong = office.restarted()
    wrong.come()
    wrong.ask(step(adapter, lane, 2), request="s2", client=BEN)

    (waits,) = told(recover(wrong, body=elsewhere))

    assert isinstance(waits, Waiting)
    assert "belongs to base model 'tiny'" in waits.reason
    status = wrong.broker.status(wrong.now)
    assert (status.put_off, status.another_base) == (1, 1)
    right = wrong.restarted()
    assert asked(right.come()) == [adapter]
    recover(right)
    assert right.broker.status(right.now).put_off == 0


def test_a_load_of_what_is_of_another_base_model_fails_and_puts_nothing_off(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    source = AdapterId("ad-elsewhere")
    load = LoadCheckpoint(adapter=adapter, lane=lane, seq=1, source=source, name="a")
    office.settled(office.ask(load, request="l"))
    office.die()
    office.come()
    assert forwarded(recover(office)) == [load]

    elsewhere = failed(AnotherBase("it belongs to base model 'tiny'"))
    heard = told(office.settled(office.answer(TRAINER, elsewhere, request="l")))

    assert heard == [elsewhere]


def test_whoever_samples_from_an_adapter_of_another_base_model_reads_where_it_is_and_nobody_else_does(
    office: JournalledOffice,
) -> None:
    adapter, _ = trained(office)
    wrong = office.restarted()
    wrong.come()
    elsewhere = AnotherBase(f"adapter {adapter!r} is on disk: start the daemon with the model that it had")
    recover(wrong, body=failed(elsewhere))

    wrong.lose(TRAINER)  # whoever asks meanwhile reads the same
    mine = wrong.only(wrong.ask(sample(adapter, 3), request="r1"))
    theirs = wrong.only(wrong.ask(sample(adapter, 3), request="r2", tenant=BOB))

    assert isinstance(mine, Failed)
    assert isinstance(theirs, Failed)
    assert (mine.code, mine.message) == (elsewhere.code, elsewhere.message)
    assert theirs.code == "version_not_found"


def test_a_deletion_is_not_done_because_another_base_model_runs(office: JournalledOffice) -> None:
    adapter = AdapterId("ad-of-old")  # from before there was a journal
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d"))
    wrong = office.restarted()
    assert [each.kind for each in forwarded(wrong.come())] == ["delete_adapter"]

    elsewhere = failed(AnotherBase("it belongs to base model 'tiny'"))
    assert told(wrong.settled(wrong.answer(TRAINER, elsewhere, request="d"))) == []

    assert [each.key for each in wrong.store.unfinished()] == [(ALICE, "d")]
    wrong.now = A_LONG_TIME_S
    assert [each.kind for each in forwarded(wrong.settled(wrong.broker.tick(wrong.now)))] == [
        "delete_adapter"
    ]


# --- deletions that come again ---------------------------------------------------------------------

GONE = Failed(code="adapter_not_found", message="", retryable=False, fault="user")


def test_a_deletion_that_comes_again_ends_the_adapter_in_the_journal_and_for_samplers(
    office: JournalledOffice,
) -> None:
    adapter, _ = trained(office)
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d"))
    office.die()
    office.come()
    recover(office, body=GONE)

    decisions = office.answer(TRAINER, GONE, request="d")

    assert [type(each.event) for each in decisions if isinstance(each, Publish)] == [AdapterDeleted]
    assert told(office.settled(decisions)) == [Done()]
    assert not office.store.begins(adapter)


def test_a_strangers_deletion_that_comes_again_changes_nothing_of_the_adapter(
    office: JournalledOffice,
) -> None:
    adapter, _ = trained(office)
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d", tenant=BOB))
    office.die()
    office.come()

    told_bob = office.settled(office.answer(TRAINER, GONE, request="d", tenant=BOB))

    assert told(told_bob) == [Done()]
    assert not any(isinstance(each, Publish) for each in told_bob)
    assert office.store.begins(adapter)


def test_that_an_adapter_is_gone_is_written_down_before_the_outcome_that_says_so(
    office: JournalledOffice,
) -> None:
    adapter, _ = created(office)
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d"))

    decisions = office.answer(TRAINER, Done(), request="d")

    records = [each.record for each in decisions if isinstance(each, WriteDown)]
    assert [type(each) for each in records if isinstance(each, Gone | Ended)] == [Gone, Ended]


def test_what_is_nobodys_brings_no_adapter_back(office: JournalledOffice) -> None:
    """The journal files under no adapter what is left of all that were deleted."""
    adapter, _ = trained(office)
    office.settled(office.ask(DeleteAdapter(adapter=adapter), request="d"))
    office.settled(office.answer(TRAINER, Done(), request="d"))
    other, other_lane = trained(office, "f2")
    theirs = step(other, other_lane, 2)
    office.settled(office.ask(theirs, request="s", tenant=BOB))
    now = A_LONG_TIME_S
    keeper = Compaction(office.store, JournalConfig(), clock=lambda: now)
    while keeper.step():
        now += A_LONG_TIME_S

    begun = forwarded(office.restarted().come())

    assert asked_of(begun) == [other]
    assert theirs in begun


def asked_of(messages: Sequence[Message]) -> list[AdapterId]:
    return [each.adapter for each in messages if isinstance(each, RecoverAdapter)]


# --- what waits in the broker ----------------------------------------------------------------------


def test_what_waits_for_a_recovery_keeps_no_frames_and_counts_for_its_tenant(tmp_path: Path) -> None:
    office = JournalledOffice(config=small(held=5000), file=tmp_path / "journal.sqlite")
    office.come()
    adapter, lane = trained(office)
    office.die()
    office.come()
    big = [replace(gather(adapter, lane, seq), loss_config={"x" * 2000: 1.0}) for seq in (2, 3, 4)]

    waits = [told(office.settled(office.ask(each, request=f"f{each.seq}"))) for each in big]

    assert [[type(each) for each in said] for said in waits] == [[Waiting], [Waiting], [Failed]]
    assert codes(waits[2]) == ["quota_exceeded"]
    parked = [ticket for ticket in office.broker._dispatch.ledger.under_way() if ticket.parked]
    assert [ticket.frames for ticket in parked] == [(), ()]
    recover(office)
    sent = office.settled(office.answer(TRAINER, passed(), request="f1"))
    assert [each.seq for each in forwarded(sent) if isinstance(each, ForwardBackward)] == [2, 3]


def test_what_was_let_wait_is_not_refused_for_its_size_when_it_goes_on(tmp_path: Path) -> None:
    office = JournalledOffice(config=small(held=5000, inflight=1), file=tmp_path / "journal.sqlite")
    office.come()
    adapter, lane = trained(office)
    office.die()
    office.come()
    for seq in (2, 3):
        big = replace(gather(adapter, lane, seq), loss_config={"x" * 2000: 1.0})
        office.settled(office.ask(big, request=f"f{seq}"))
    other = replace(office.config, quotas=replace(office.config.quotas, held_bytes=1000))

    again = office.restarted(other)
    again.come()
    recover(again)
    decisions = again.settled(again.answer(TRAINER, passed(), request="f1"))

    assert codes(told(decisions)) == []
    assert len(forwarded(decisions)) == 1
    assert len(again.store.unfinished()) == 2


def test_one_request_that_cannot_be_read_again_holds_up_none_behind_it(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    for seq in (1, 2):
        office.settled(office.ask(step(adapter, lane, seq), request=f"s{seq}"))
    first = office.store.unfinished()[0].number
    office.die()
    office.store.tables.run("UPDATE requests SET frames = NULL WHERE number = ?", first)
    office.come()

    decisions = recover(office)

    assert codes(told(decisions)) == ["storage_failed"]
    assert forwarded(decisions) == [step(adapter, lane, 2)]


# --- a final failure, and what runs later ------------------------------------------------------------


def test_what_nobody_has_seen_is_forgotten_when_it_is_refused(office: JournalledOffice) -> None:
    """Else it would run at the next start, beside what its user sent instead."""
    adapter, lane = trained(office)
    office.die()
    waits = office.settled(office.ask(step(adapter, lane, 2), request="s2"))
    assert [type(each) for each in told(waits)] == [Waiting]

    assert codes(told(office.die(for_good=True))) == ["actor_unavailable"]

    assert office.store.unfinished() == []
    late = office.settled(office.ask(step(adapter, lane, 3), request="s3"))
    assert codes(told(late)) == ["actor_unavailable"]
    assert office.store.unfinished() == []


def test_what_may_have_run_stays_and_its_user_is_told(office: JournalledOffice) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(step(adapter, lane, 1), request="s1"))

    (refused,) = told(office.die(for_good=True))

    assert isinstance(refused, Failed)
    assert "runs as soon as it can" in refused.message
    assert [each.key for each in office.store.unfinished()] == [(ALICE, "s1")]
    again = office.restarted()
    again.come()
    assert forwarded(recover(again)) == [step(adapter, lane, 1)]
    assert told(again.settled(again.answer(TRAINER, stepped(1), request="s1"))) == []


def test_a_request_that_waited_where_its_adapter_broke_is_forgotten_too(office: JournalledOffice) -> None:
    adapter, lane = trained(office)
    office.die()
    office.come()
    waits = office.ask(step(adapter, lane, 2), request="s2")
    assert [type(each.record) for each in waits if isinstance(each, WriteDown)] == [Received]
    office.settled(waits)

    heard: list[Message] = []
    for number in (1, 2, 3):
        heard += told(recover(office, number=number, body=Recovered(step=0)))
        broken = failed(InvalidData("no such token"))
        heard += told(office.settled(office.answer(TRAINER, broken, request="f1")))

    assert codes(heard) == ["recovery_failed"]
    assert office.store.unfinished() == []
