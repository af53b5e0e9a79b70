"""Publish, retire, delete: as the broker's decisions from the first request to the dropped files."""

from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import (
    AdapterDeleted,
    AdapterDetails,
    AdapterList,
    AdapterPublished,
    DeleteAdapter,
    DeleteVersion,
    Done,
    DropVersion,
    Failed,
    ListAdapters,
    LoadVersion,
    PublishAdapter,
    Receipt,
    SampleResult,
    StateLoaded,
    VersionRetired,
    VersionWritten,
    Waiting,
)
from loractl.daemon.decisions import Forward, Publish, Tell
from loractl.tests.daemon.office import (
    ALICE,
    BEN,
    BOB,
    LORA,
    OTHER_SAMPLER,
    SAMPLER,
    TRAINER,
    Office,
    record,
    sample,
    served,
    small,
)

PUBLISH = PublishAdapter(adapter=AdapterId("ad-1"), lane=LaneId("ln-1"), seq=1)


@pytest.fixture
def office() -> Office:
    return Office(config=small(keep_versions=1)).all_ready()


def publish(office: Office, number: int) -> list[object]:
    office.ask(PUBLISH, request=f"p{number}")
    return [
        office.read(d)
        for d in office.answer(TRAINER, VersionWritten(record=record(number)), request=f"p{number}")
    ]


def test_a_publish_is_announced_and_answered_when_a_sampler_serves_it(office: Office):
    assert publish(office, 1) == [AdapterPublished(number=1, record=record(1))]
    office.now = 0.25

    receipt = office.only(office.report(SAMPLER, served(SAMPLER, 1)))

    assert isinstance(receipt, Receipt)
    assert (receipt.sampler, receipt.waited_ms) == ("sampler-0", 250.0)
    assert receipt.engine_reason == "it trains the unembedding"


def test_a_failed_publish_is_passed_on(office: Office):
    office.ask(PUBLISH)
    failure = Failed(code="lane_lost", message="no", retryable=True, fault="server")

    assert office.only(office.answer(TRAINER, failure)) == failure


def test_a_publish_without_samplers_is_answered_at_once():
    office = Office(roles={TRAINER: "trainer"}).all_ready()

    _, receipt = publish(office, 1)

    assert isinstance(receipt, Receipt)


def test_a_publish_that_nobody_serves_fails_when_its_time_is_over(office: Office):
    publish(office, 1)
    assert office.broker.next_deadline() == 120.0

    failed = office.only(office.broker.tick(120.0))

    assert isinstance(failed, Failed)
    assert failed.code == "publish_failed"


def test_a_publish_survives_the_death_of_the_trainer_once_it_is_written(office: Office):
    publish(office, 1)

    assert office.lose(TRAINER) == []
    assert isinstance(office.only(office.report(SAMPLER, served(SAMPLER, 1))), Receipt)


def test_a_publish_that_waits_for_its_receipt_frees_the_tenants_place():
    office = Office(config=small(inflight=1)).all_ready()
    publish(office, 1)

    [decision] = office.ask(sample(None), request="r2")

    assert isinstance(decision, Forward)


def test_an_old_version_goes_all_the_way(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))

    assert publish(office, 2)[1] == VersionRetired(number=3, adapter=AdapterId("ad-1"), version=1)
    assert office.release(SAMPLER, 1) == []
    [drop] = office.release(OTHER_SAMPLER, 1)

    assert isinstance(drop, Tell)
    assert drop.actor == TRAINER
    assert office.read(drop) == DropVersion(adapter=AdapterId("ad-1"), version=1)


def test_a_version_is_not_retired_while_its_own_receipt_is_open(office: Office):
    publish(office, 1)

    assert len(publish(office, 2)) == 1
    receipt, retired = office.report(SAMPLER, served(SAMPLER, 1))

    assert isinstance(office.read(receipt), Receipt)
    assert isinstance(office.read(retired), VersionRetired)


def test_a_version_is_retired_when_the_last_sample_on_it_ended(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    [forward] = office.ask(sample(), request="s1")
    assert len(publish(office, 2)) == 1

    _, retired = office.answer(forward.actor, _sampled(), request="s1")

    assert isinstance(retired, Publish)
    assert isinstance(office.read(retired), VersionRetired)


def _sampled() -> SampleResult:
    ints, floats = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return SampleResult(
        version=1, engine="torch", lengths=ints, tokens=ints, logprobs=floats, texts=("",),
        stop_reasons=("stop",), prompt_logprobs=np.zeros(0, dtype=np.float32),
    )  # fmt: skip


def test_a_dead_sampler_lets_go_of_versions_and_of_its_samples(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    [forward] = office.ask(sample(), request="s1")
    publish(office, 2)
    office.report(OTHER_SAMPLER, served(OTHER_SAMPLER, 2))

    failed, retired = office.lose(forward.actor)
    [drop] = office.release(OTHER_SAMPLER, 1)

    assert office.read(failed).code == "actor_restarting"
    assert isinstance(office.read(retired), VersionRetired)
    assert isinstance(office.read(drop), DropVersion)


def test_a_drop_waits_for_a_trainer_that_is_away(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    publish(office, 2)
    office.lose(TRAINER)
    office.release(SAMPLER, 1)
    assert office.release(OTHER_SAMPLER, 1) == []

    decisions = office.ready(TRAINER, versions=[record(1), record(2)])

    assert [office.read(d) for d in decisions if isinstance(d, Tell)] == [
        DropVersion(adapter=AdapterId("ad-1"), version=1)
    ]


def test_a_deleted_adapter_is_announced_before_its_client_reads_done(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    office.ask(DeleteAdapter(adapter=AdapterId("ad-1")), request="d1")

    decisions = office.answer(TRAINER, Done(), request="d1")

    assert [office.read(d) for d in decisions] == [
        AdapterDeleted(number=2, adapter=AdapterId("ad-1")),
        Done(),
    ]


def test_a_delete_that_failed_deletes_nothing(office: Office):
    publish(office, 1)
    office.ask(DeleteAdapter(adapter=AdapterId("ad-1")), request="d1")

    failure = Failed(code="adapter_not_found", message="no", retryable=False, fault="user")

    assert office.only(office.answer(TRAINER, failure, request="d1")) == failure
    assert isinstance(office.ask(sample(), request="s1")[0], Forward)


def test_samplers_that_are_all_given_up_fail_the_publish_at_once(office: Office):
    publish(office, 1)
    assert office.lose(SAMPLER, for_good=True) == []

    failed = office.only(office.lose(OTHER_SAMPLER, for_good=True))

    assert isinstance(failed, Failed)
    assert failed.code == "publish_failed"


def delete_version(office: Office, number: int, **whose: object) -> list[object]:
    body = DeleteVersion(adapter=AdapterId("ad-1"), version=number)
    return [office.read(d) for d in office.ask(body, request=f"dv{number}", **whose)]


def test_a_held_version_goes_when_it_is_deleted_and_not_before(office: Office):
    for number in (1, 2, 3):
        office.ask(PUBLISH, request=f"p{number}")
        written = VersionWritten(record=record(number, held=number == 1))
        office.answer(TRAINER, written, request=f"p{number}")
        office.report(SAMPLER, served(SAMPLER, number))

    [retired, done] = delete_version(office, 1)

    assert retired == VersionRetired(number=5, adapter=AdapterId("ad-1"), version=1)
    assert done == Done()
    office.release(SAMPLER, 1)
    assert office.read(office.release(OTHER_SAMPLER, 1)[0]) == DropVersion(adapter="ad-1", version=1)


def test_deleting_a_version_that_is_gone_or_another_tenants_changes_nothing(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))

    answers = [
        delete_version(office, 7),
        delete_version(office, 1, tenant=BOB),
        delete_version(office, 1, tenant=BOB),
    ]

    assert answers == [[Done()]] * 3
    assert isinstance(office.ask(sample(version=1), request="s1")[0], Forward)


def test_the_trainer_is_told_of_a_deletion_that_came_while_it_was_away(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    office.lose(TRAINER)
    delete_version(office, 1)
    office.release(SAMPLER, 1)
    office.release(OTHER_SAMPLER, 1)

    decisions = office.ready(TRAINER, versions=[record(1)])

    assert DropVersion(adapter=AdapterId("ad-1"), version=1) in [
        office.read(d) for d in decisions if isinstance(d, Tell)
    ]


def test_details_name_the_newest_version_that_can_be_sampled_from(office: Office):
    for number in (1, 2):
        office.ask(PUBLISH, request=f"p{number}")
        office.answer(TRAINER, VersionWritten(record=record(number, held=True)), request=f"p{number}")
        office.report(SAMPLER, served(SAMPLER, number))
    delete_version(office, 2)
    details = AdapterDetails(
        adapter=AdapterId("ad-1"), tenant=ALICE, name="pirate", lora=LORA, step=3, version=2,
        checkpoint_step=-1, parameters=8, state_bytes=96, created_unix_s=0.0,
    )  # fmt: skip

    office.ask(ListAdapters(), request="l1")
    listed = office.only(office.answer(TRAINER, AdapterList(adapters=(details,)), request="l1"))

    assert isinstance(listed, AdapterList)
    assert [each.version for each in listed.adapters] == [1]


def test_a_version_that_is_being_loaded_stays_until_it_is(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))
    load = LoadVersion(
        adapter=AdapterId("ad-2"), lane=LaneId("ln-2"), seq=1, source=AdapterId("ad-1"), version=1,
        source_owner=ALICE,
    )  # fmt: skip
    office.ask(load, request="l1", tenant=BOB)

    assert delete_version(office, 1) == [Done()]
    decisions = office.answer(TRAINER, StateLoaded(step=0), request="l1", tenant=BOB)

    assert [type(office.read(d)) for d in decisions] == [StateLoaded, VersionRetired]


def test_a_version_that_is_not_there_is_refused_by_the_trainer_in_its_turn(office: Office):
    load = LoadVersion(
        adapter=AdapterId("ad-2"), lane=LaneId("ln-2"), seq=1, source=AdapterId("ad-1"), version=9
    )

    [decision] = office.ask(load, request="l1")

    assert isinstance(decision, Forward)
    assert decision.actor == TRAINER


def test_a_sample_reads_the_version_of_the_tenant_that_it_names(office: Office):
    publish(office, 1)
    office.report(SAMPLER, served(SAMPLER, 1))

    [mine] = office.ask(replace(sample(), owner=ALICE), request="s1", tenant=BOB)
    [refused] = office.ask(sample(), request="s2", tenant=BOB)
    [wrong] = office.ask(replace(sample(), owner=BOB), request="s3", tenant=ALICE)

    assert office.read(mine).version == 1
    assert office.read(refused).code == office.read(wrong).code == "version_not_found"


def test_whoever_waits_hears_why_and_then_the_answer(office: Office):
    office.ask(PUBLISH, request="p1")
    office.ask(PUBLISH, request="p1", client=BEN)
    waiting = Waiting(reason="2 operations of another adapter run before it", routine=True)

    decisions = office.answer(TRAINER, waiting, request="p1", last=False)

    assert [office.read(d) for d in decisions] == [waiting, waiting]
    failure = Failed(code="not_finite", message="no", retryable=False, fault="user")
    assert [office.read(d) for d in office.answer(TRAINER, failure, request="p1")] == [failure, failure]
