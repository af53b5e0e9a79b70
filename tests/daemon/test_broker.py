"""The broker: who gets a request, who reads its answer, what happens when an actor dies."""

import numpy as np
import pytest
from loractl.bus.codec import encode, peek
from loractl.bus.errors import ActorStopping, BadFrame, RequestConflict
from loractl.bus.ids import LOCAL_TENANT, ActorId, AdapterId, RequestId
from loractl.bus.messages import (
    Abort,
    ActorReady,
    AdapterDetails,
    AdapterList,
    DaemonStatus,
    DescribeModel,
    Done,
    Drain,
    Echo,
    Envelope,
    Failed,
    GetStatus,
    GetVersions,
    Heartbeat,
    ListAdapters,
    Ping,
    Pong,
    Sample,
    SampleChunk,
    Shutdown,
    VersionTable,
    Waiting,
)
from loractl.daemon.decisions import Forward, Heard, Relay, Reply, StopDaemon, Tell
from loractl.tests.daemon.office import (
    ALICE,
    ANN,
    BEN,
    BOB,
    LORA,
    OTHER_SAMPLER,
    SAMPLER,
    TRAINER,
    Office,
    forward_backward,
    record,
    sample,
    served,
    small,
)

ECHO = Echo(payload=np.zeros(3, dtype=np.uint8))


@pytest.fixture
def office() -> Office:
    return Office().all_ready()


# --- requests and answers ------------------------------------------------------------------------


def test_a_training_request_goes_to_the_trainer_as_it_came(office: Office):
    [decision] = office.ask(forward_backward())

    assert isinstance(decision, Forward)
    assert decision.actor == TRAINER
    assert len(decision.frames) == 8


def test_its_answer_goes_to_the_client_as_it_came(office: Office):
    office.ask(DescribeModel())

    [decision] = office.answer(TRAINER, Done())

    assert isinstance(decision, Relay)
    assert decision.client == ANN
    assert office.read(decision) == Done()


def test_the_broker_answers_a_ping_itself(office: Office):
    office.now = 2.5

    assert office.only(office.ask(Ping())) == Pong(daemon_version="1.2.3", uptime_s=2.5)


def test_what_is_no_request_is_refused(office: Office):
    with pytest.raises(BadFrame, match="'done' is no request"):
        office.ask(Done())


def test_a_sample_with_a_frame_too_many_is_refused(office: Office):
    frames = [*encode(Envelope(request=RequestId("r1"), tenant=ALICE, body=sample())), b"one more"]

    with pytest.raises(BadFrame):
        office.broker.request(ANN, peek(frames[0], office.config.limits), frames, 0.0)


def test_parts_of_an_answer_go_to_everybody_who_waits(office: Office):
    office.report(TRAINER, _ready_with(record(1)))
    office.ask(sample(), client=ANN)
    office.ask(sample(), client=BEN)
    chunk = SampleChunk(index=0, tokens=np.arange(1, dtype=np.int64), text="a")

    decisions = office.answer(SAMPLER, chunk, last=False)

    assert [d.client for d in decisions] == [ANN, BEN]


def _ready_with(*records, adapters: int = 1) -> ActorReady:
    return ActorReady(
        actor=TRAINER, role="trainer", pid=0, details="", versions=tuple(records), adapters=adapters
    )


def test_shutdown_is_answered_and_then_stops_the_daemon(office: Office):
    reply, stop = office.ask(Shutdown(), tenant=LOCAL_TENANT)

    assert office.read(reply) == Done()
    assert stop == StopDaemon()


# --- the same request again ----------------------------------------------------------------------


def test_a_resend_while_under_way_runs_once_and_answers_both(office: Office):
    office.ask(DescribeModel(), client=ANN)

    assert office.ask(DescribeModel(), client=BEN) == []
    assert [d.client for d in office.answer(TRAINER, Done())] == [ANN, BEN]


def test_a_resend_by_the_same_client_is_answered_once(office: Office):
    office.ask(DescribeModel())
    office.ask(DescribeModel())

    assert len(office.answer(TRAINER, Done())) == 1


def test_a_resend_after_the_end_reads_the_first_outcome(office: Office):
    office.ask(DescribeModel())
    [first] = office.answer(TRAINER, Done())

    [again] = office.ask(DescribeModel(), client=BEN)

    assert isinstance(again, Relay)
    assert (again.client, [*again.frames]) == (BEN, [*first.frames])


def test_the_same_id_with_another_payload_is_refused_and_harms_nothing(office: Office):
    office.ask(DescribeModel())

    with pytest.raises(RequestConflict):
        office.ask(ListAdapters())
    assert office.only(office.answer(TRAINER, Done())) == Done()


@pytest.mark.parametrize(("retryable", "runs_again"), [(True, True), (False, False)])
def test_only_a_failure_worth_another_try_runs_again(office: Office, retryable: bool, runs_again: bool):
    office.ask(DescribeModel())
    office.answer(TRAINER, Failed(code="x", message="no", retryable=retryable, fault="user"))

    [decision] = office.ask(DescribeModel())

    assert isinstance(decision, Forward if runs_again else Relay)


# --- samplers ------------------------------------------------------------------------------------


def test_samples_go_to_the_sampler_that_holds_the_fewest(office: Office):
    targets = [office.ask(sample(None), request=f"r{i}")[0].actor for i in range(4)]

    assert targets == [SAMPLER, OTHER_SAMPLER, SAMPLER, OTHER_SAMPLER]


def test_a_sampler_that_is_not_ready_gets_nothing():
    office = Office()
    office.ready(OTHER_SAMPLER)

    assert [office.ask(sample(None), request=f"r{i}")[0].actor for i in range(2)] == [OTHER_SAMPLER] * 2


def test_latest_is_decided_when_a_sample_is_admitted(office: Office):
    office.report(TRAINER, _ready_with(record(1), record(2)))

    body = office.only(office.ask(sample()))

    assert isinstance(body, Sample)
    assert body.version == 2
    assert body.prompt.tolist() == [0, 1, 2]


def test_a_sample_of_the_base_model_stays_as_it_is(office: Office):
    body = office.only(office.ask(sample(None)))

    assert isinstance(body, Sample)
    assert body.version is None


def test_a_version_without_an_adapter_is_refused(office: Office):
    failed = office.only(office.ask(sample(None, version=3)))

    assert isinstance(failed, Failed)
    assert failed.code == "invalid_request"


def test_another_tenants_adapter_is_not_found(office: Office):
    office.report(TRAINER, _ready_with(record(1)))

    failed = office.only(office.ask(sample(), tenant=BOB))

    assert isinstance(failed, Failed)
    assert failed.code == "version_not_found"


def test_without_samplers_a_sample_says_that_none_is_configured():
    office = Office(roles={TRAINER: "trainer"})

    failed = office.only(office.ask(sample(None)))

    assert isinstance(failed, Failed)
    assert failed.code == "actor_unavailable"
    assert "without a sampler" in failed.message


# --- abort ---------------------------------------------------------------------------------------


def test_an_abort_goes_where_its_target_is(office: Office):
    office.ask(sample(None), request="r1")
    office.ask(sample(None), request="r2")

    [decision] = office.ask(Abort(target=RequestId("r2")), request="a1")

    assert isinstance(decision, Forward)
    assert decision.actor == OTHER_SAMPLER


def test_an_abort_of_something_unknown_is_done(office: Office):
    assert office.only(office.ask(Abort(target=RequestId("gone")), request="a1")) == Done()


def test_an_abort_never_reaches_another_tenants_request(office: Office):
    office.ask(sample(None), request="r1", tenant=ALICE)

    assert office.only(office.ask(Abort(target=RequestId("r1")), request="a1", tenant=BOB)) == Done()


def test_an_abort_ends_a_sample_that_no_sampler_has_yet():
    office = Office()
    office.ask(sample(None), request="r1")

    ended, done = office.ask(Abort(target=RequestId("r1")), request="a1", client=BEN)

    assert (ended.client, office.read(ended).code) == (ANN, "aborted")
    assert (done.client, office.read(done)) == (BEN, Done())
    assert office.ready(SAMPLER) == [Heard(SAMPLER, ready=True)]


def test_an_abort_passes_a_full_tenant():
    office = Office(config=small(inflight=1)).all_ready()
    office.ask(sample(None), request="r1")

    [decision] = office.ask(Abort(target=RequestId("r1")), request="a1")

    assert isinstance(decision, Forward)


def test_training_cannot_be_aborted(office: Office):
    office.ask(forward_backward(), request="r1")

    failed = office.only(office.ask(Abort(target=RequestId("r1")), request="a1"))

    assert isinstance(failed, Failed)
    assert failed.code == "not_supported"


# --- waiting -------------------------------------------------------------------------------------


def test_a_request_waits_for_a_starting_actor_and_is_told_why():
    office = Office()

    [notice] = office.ask(DescribeModel())
    assert office.read(notice) == Waiting(reason="the trainer is starting")
    assert not notice.envelope.last
    decisions = office.ready(TRAINER)

    assert [type(d) for d in decisions] == [Heard, Forward]


def test_waiting_requests_keep_their_order():
    office = Office()
    for i in range(3):
        office.ask(forward_backward(i + 1), request=f"r{i}")

    forwards = [office.read(d).seq for d in office.ready(TRAINER) if isinstance(d, Forward)]

    assert forwards == [1, 2, 3]


def test_an_echo_takes_a_sampler_while_the_trainer_is_away():
    office = Office()
    office.ready(SAMPLER)

    [decision] = office.ask(ECHO)

    assert decision.actor == SAMPLER


def test_an_echo_prefers_the_trainer_however_busy(office: Office):
    assert [office.ask(ECHO, request=f"r{i}")[0].actor for i in range(3)] == [TRAINER] * 3


def test_a_tenant_over_its_places_waits_and_is_told_and_the_next_free_place_is_its():
    office = Office(config=small(inflight=2)).all_ready()
    office.ask(forward_backward(1), request="r1")
    office.ask(forward_backward(2), request="r2")

    notice = office.only(office.ask(forward_backward(3), request="r3"))
    assert isinstance(notice, Waiting)
    assert "2 requests of this tenant" in notice.reason
    relay, forward, _moved_on = office.answer(TRAINER, Done(), request="r1")

    assert isinstance(relay, Relay)
    assert office.read(forward).seq == 3


def test_a_full_tenant_holds_up_nobody_else():
    office = Office(config=small(inflight=1)).all_ready()
    office.ask(forward_backward(1), request="r1")
    office.ask(forward_backward(2), request="r2")

    [decision] = office.ask(forward_backward(1), request="r1", tenant=BOB)

    assert isinstance(decision, Forward)


def test_what_waits_for_a_trainer_does_not_hold_up_the_same_tenants_samples():
    office = Office(config=small(inflight=1))
    office.ready(SAMPLER)
    office.ask(forward_backward(1), request="r1")

    [decision] = office.ask(sample(None), request="r2")

    assert isinstance(decision, Forward)


def test_a_second_client_that_joins_a_waiting_request_is_told_too():
    office = Office()
    office.ask(DescribeModel(), client=ANN)

    [notice] = office.ask(DescribeModel(), client=BEN)

    assert isinstance(notice, Reply)
    assert (notice.client, office.read(notice)) == (BEN, Waiting(reason="the trainer is starting"))


# --- death ---------------------------------------------------------------------------------------


def test_what_a_dead_actor_held_fails_and_says_to_send_it_again(office: Office):
    office.ask(forward_backward())

    failed = office.only(office.lose(TRAINER))

    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("actor_restarting", True)
    assert "send the request again" in failed.message


def test_a_resend_waits_for_the_restart_and_runs_then(office: Office):
    office.ask(forward_backward())
    office.lose(TRAINER)

    assert office.only(office.ask(forward_backward())) == Waiting(reason="the trainer is restarting")
    assert [type(d) for d in office.ready(TRAINER)] == [Heard, Forward]


def test_an_answer_that_comes_after_its_actor_was_declared_dead_is_dropped(office: Office):
    office.ask(forward_backward())
    office.lose(TRAINER)

    assert office.answer(TRAINER, Done()) == []


def test_an_answer_from_an_actor_that_does_not_hold_the_request_is_dropped(office: Office):
    office.ask(forward_backward())

    assert office.answer(SAMPLER, Done()) == []


def test_samples_go_on_with_the_sampler_that_lives(office: Office):
    office.lose(SAMPLER)

    assert office.ask(sample(None))[0].actor == OTHER_SAMPLER


def test_what_waited_ends_when_its_actor_is_given_up(office: Office):
    office.lose(TRAINER)
    office.ask(DescribeModel())

    failed = office.only(office.lose(TRAINER, for_good=True))

    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("actor_unavailable", False)
    assert "exit code 1" in failed.message


def test_what_waited_moves_on_when_one_of_two_is_given_up():
    office = Office(config=small(inflight=1)).all_ready()
    office.ask(sample(None), request="r1")
    office.ask(sample(None), request="r2")

    decisions = office.lose(SAMPLER, for_good=True)

    assert [type(d) for d in decisions] == [Reply, Forward]
    assert decisions[1].actor == OTHER_SAMPLER


def test_a_ready_from_a_process_that_was_ended_is_not_believed(office: Office):
    office.lose(TRAINER)
    office.broker.spawned(TRAINER, pid=20, restarts=1)

    assert office.ready(TRAINER, pid=10) == []
    assert office.ready(TRAINER, pid=20) == [Heard(TRAINER, ready=True)]


# --- stopping ------------------------------------------------------------------------------------


def test_draining_tells_the_actors_and_refuses_what_waits():
    office = Office()
    office.ready(TRAINER)
    office.ask(forward_backward(), request="r1")
    office.ask(sample(None), request="r2")

    told, refused = office.broker.drain(office.now)

    assert isinstance(told, Tell)
    assert (told.actor, office.read(told)) == (TRAINER, Drain())
    assert office.read(refused).code == "actor_stopping"


def test_while_draining_answers_still_arrive_and_new_requests_are_refused(office: Office):
    office.ask(forward_backward(), request="r1")
    office.broker.drain(office.now)

    with pytest.raises(ActorStopping):
        office.ask(forward_backward(2), request="r2")
    assert office.only(office.answer(TRAINER, Done(), request="r1")) == Done()


def test_nobody_is_left_without_an_answer_at_the_end(office: Office):
    office.ask(forward_backward(), request="r1")
    office.broker.drain(office.now)

    failed = office.only(office.broker.finish(office.now))

    assert isinstance(failed, Failed)
    assert failed.code == "actor_stopping"


# --- what the broker knows -----------------------------------------------------------------------


def test_the_status_shows_since_when_an_actor_hangs_and_nothing_of_a_healthy_one(office: Office):
    def told(at: float) -> dict[str, tuple[float, float, str]]:
        office.now = at
        status = office.only(office.ask(GetStatus(), request="s1"))
        assert isinstance(status, DaemonStatus)
        return {a.actor: (a.silent_s, a.stuck_s, a.stuck_at) for a in status.actors}

    def beat(actor: ActorId, busy_s: float = 0.0, at: str = "") -> None:
        office.report(actor, Heartbeat(actor=actor, busy_s=busy_s, at=at, rss_bytes=1))

    beat(TRAINER)
    beat(SAMPLER)
    beat(OTHER_SAMPLER, busy_s=140.0, at="a token")
    soon = told(7.0)
    beat(TRAINER)
    beat(OTHER_SAMPLER, busy_s=147.0, at="a token")
    late = told(12.0)

    assert soon == {TRAINER: (0, 0, ""), SAMPLER: (0, 0, ""), OTHER_SAMPLER: (0, 0, "")}
    assert late == {TRAINER: (0, 0, ""), SAMPLER: (12.0, 0, ""), OTHER_SAMPLER: (0, 152.0, "a token")}


def test_an_actor_that_is_started_again_is_not_said_to_hang(office: Office):
    office.now = 100.0

    office.lose(TRAINER)
    restarting = office.only(office.ask(GetStatus(), request="s1"))
    office.broker.spawned(TRAINER, pid=20, restarts=1)
    office.ready(TRAINER, pid=20)
    ready = office.only(office.ask(GetStatus(), request="s2"))

    assert isinstance(restarting, DaemonStatus)
    assert isinstance(ready, DaemonStatus)
    assert (restarting.actors[0].silent_s, ready.actors[0].silent_s) == (0.0, 0.0)


def test_the_status_names_every_actor(office: Office):
    office.ask(forward_backward(), request="r1")
    office.report(TRAINER, Heartbeat(actor=TRAINER, busy_s=0.0, at="", rss_bytes=77))

    status = office.only(office.ask(GetStatus(), request="s1"))

    assert isinstance(status, DaemonStatus)
    assert [(a.actor, a.phase, a.waiting) for a in status.actors] == [
        ("trainer", "ready", 1),
        ("sampler-0", "ready", 0),
        ("sampler-1", "ready", 0),
    ]
    assert status.actors[0].rss_bytes == 77
    assert (status.pid, status.daemon_version) == (42, "1.2.3")


def test_a_tenant_sees_its_own_versions_and_an_actor_sees_all(office: Office):
    office.report(TRAINER, _ready_with(record(1), record(1, "ad-2", BOB)))

    mine = office.only(office.ask(GetVersions(), request="v1"))
    all_of_them = office.only(office.tables(SAMPLER))

    assert isinstance(mine, VersionTable)
    assert isinstance(all_of_them, VersionTable)
    assert [r.tenant for r in mine.records] == [ALICE]
    assert [r.tenant for r in all_of_them.records] == [ALICE, BOB]


def test_a_list_of_adapters_says_which_engine_serves_each(office: Office):
    office.report(SAMPLER, served(SAMPLER, 1))
    office.ask(ListAdapters())
    details = AdapterDetails(
        adapter=AdapterId("ad-1"), tenant=ALICE, name="pirate", lora=LORA, step=1, version=1,
        checkpoint_step=-1, parameters=10, state_bytes=160, created_unix_s=0.0,
    )  # fmt: skip

    answer = office.only(office.answer(TRAINER, AdapterList(adapters=(details,))))

    assert isinstance(answer, AdapterList)
    assert answer.adapters[0].served_by == "torch: it trains the unembedding"


def test_an_answer_that_cannot_be_read_ends_its_request_as_internal(office: Office):
    office.ask(ListAdapters())
    answer = AdapterList(adapters=())
    frames = [*encode(Envelope(request=RequestId("r1"), tenant=ALICE, body=answer)), b"one more"]

    [reply] = office.broker.heard(TRAINER, peek(frames[0], office.config.limits), frames, 0.0)

    assert office.read(reply).code == "internal"
