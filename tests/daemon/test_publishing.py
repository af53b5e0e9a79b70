"""Publish, retire, delete: as the broker's decisions from the first request to the dropped files."""

import numpy as np
import pytest
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import (
    AdapterDeleted,
    AdapterPublished,
    DeleteAdapter,
    Done,
    DropVersion,
    Failed,
    PublishAdapter,
    Receipt,
    SampleResult,
    VersionRetired,
    VersionWritten,
)
from loractl.daemon.decisions import Forward, Publish, Tell
from loractl.tests.daemon.office import (
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
