"""What a broker with a journal asks of a trainer: going back, going on from there, and doing nothing twice."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from loractl.bus.ids import LOCAL_TENANT, LaneId, RequestId, TenantId, new_adapter_id, new_lane_id
from loractl.bus.messages import (
    AdapterCreated,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DeleteAdapter,
    Done,
    Failed,
    LaneOpened,
    LanePosition,
    ListAdapters,
    LoraSpec,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    PublishAdapter,
    RecoverAdapter,
    Recovered,
    RefuseOperation,
    SaveCheckpoint,
    SkipOperation,
    SnapshotTaken,
    StepResult,
    UnloadAdapter,
    UnloadAgain,
    VersionWritten,
)
from loractl.tests.trainer_actor.loop.harness import (
    Adapter,
    Office,
    checked,
    create,
    pass_over,
    same,
    start,
    stop,
)

Serve = Callable[..., Office]
BROKER = TenantId("(broker)")
SPEC = LoraSpec(rank=4, alpha=8.0, seed=1)


def recover(adapter: Adapter, next_seq: int, snapshot: str = "", *, tenant: TenantId = BROKER) -> Recovered:
    """Bring an adapter back, to where its lane's operation `next_seq` comes next."""
    lanes = (LanePosition(lane=adapter.lane, next_seq=next_seq),)
    request = RecoverAdapter(adapter=adapter.id, snapshot=snapshot, lanes=lanes)
    recovered = adapter.office.ask(request, Recovered, tenant)
    adapter.seq = next_seq - 1
    return recovered


def train(adapter: Adapter, *data: int) -> list[np.ndarray]:
    """A window of two passes for each; what they said."""
    said = []
    for each in data:
        said += [adapter.forward_backward(each).logprobs, adapter.forward_backward(each + 50).logprobs]
        adapter.step()
    return said


def outcome(office: Office, body: Message, request: str) -> Message:
    return office.wait(office.send(body, LOCAL_TENANT, RequestId(request)))


def test_from_its_beginning_an_adapter_comes_to_the_same_bits_on_the_same_lane(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    first = train(adapter, 1, 2)

    recovered = recover(adapter, 1)

    assert recovered.step == 0
    assert same(train(adapter, 1, 2), first)


def test_from_a_snapshot_within_a_window_it_goes_on_to_the_same_bits(serve: Serve) -> None:
    office = serve("journal.snapshot_bytes=1")
    adapter = create(office, "poet")
    train(adapter, 1)
    adapter.forward_backward(2)
    taken = office.wait_for_report(SnapshotTaken)
    while taken.lanes != (LanePosition(lane=adapter.lane, next_seq=5),):
        taken = office.wait_for_report(SnapshotTaken)
    rest = [adapter.step().grad_norm, *train(adapter, 3)]

    recovered = recover(adapter, 5, taken.snapshot)

    assert (recovered.step, taken.step) == (1, 1)
    again = [adapter.step().grad_norm, *train(adapter, 3)]
    assert again[0] == rest[0]
    assert same(again[1:], rest[1:])  # type: ignore[arg-type]


def test_what_waits_of_an_adapter_that_is_brought_back_is_told_and_comes_again(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    adapter.next()
    early = office.send(OptimStep(learning_rate=0.1, **adapter.next()))

    recover(adapter, 1)

    answer = office.wait(early)
    assert isinstance(answer, Failed)
    assert answer.code == "aborted"
    adapter.forward_backward(1)
    assert adapter.step().tokens == 12


def test_a_batch_that_has_begun_leaves_no_trace_in_what_is_brought_back(serve: Serve) -> None:
    office = serve("trainer.pass_tokens=16")
    plain, adapter = create(office, "plain"), create(office, "poet")
    long = {
        "lengths": np.full(24, 16),
        "tokens": np.arange(384) % 128,
        "targets": np.arange(384) % 128,
        "weights": np.ones(384, np.float32),
    }
    running = office.send(pass_over(0, **adapter.next(), **long))
    recover(adapter, 1)
    answer = office.wait(running)

    assert isinstance(answer, Failed | PassResult)  # it may have been through before
    assert same(train(adapter, 1), train(plain, 1))


def test_a_damaged_or_missing_snapshot_is_refused_and_an_older_one_will_do(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    first = train(adapter, 1)
    lanes = (LanePosition(lane=adapter.lane, next_seq=1),)

    missing = office.refused(RecoverAdapter(adapter=adapter.id, snapshot="7", lanes=lanes), BROKER)
    unknown = office.refused(RecoverAdapter(adapter=new_adapter_id(), snapshot="", lanes=()), BROKER)

    assert (missing.code, unknown.code) == ("checkpoint_mismatch", "adapter_not_found")
    recover(adapter, 1)
    assert same(train(adapter, 1), first)


def test_skipped_and_refused_numbers_are_used_up_and_change_nothing(serve: Serve) -> None:
    office = serve()
    plain, adapter = create(office, "plain"), create(office, "poet")
    said = []
    for each in (plain, adapter):
        each.forward_backward(1)
        if each is adapter:
            assert each.run(SkipOperation, Done) == Done()
            assert each.refused(RefuseOperation, code="not_finite", message="no").code == "not_finite"
        said.append([each.step().grad_norm, each.forward_backward(2).logprobs])

    assert said[0][0] == said[1][0]
    assert same(said[0][1:], said[1][1:])  # type: ignore[arg-type]


def test_many_numbers_are_skipped_in_one_breath(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")

    requests = [office.send(SkipOperation(**adapter.next())) for _ in range(100)]

    assert [office.wait(request) for request in requests] == [Done()] * 100
    adapter.forward_backward(1)


# --- nothing is done twice -----------------------------------------------------------------------


def test_an_adapter_is_created_once_under_its_id_and_its_lane_is_open(serve: Serve) -> None:
    office = serve()
    asked = CreateAdapter(name="poet", lora=SPEC, adapter=new_adapter_id(), lane=new_lane_id())

    first = checked(outcome(office, asked, "c"), AdapterCreated)
    adapter = Adapter(office, first.details, first.lane)
    adapter.forward_backward(1)
    again = checked(outcome(office, asked, "c"), AdapterCreated)

    assert (first.details.adapter, first.lane) == (asked.adapter, asked.lane)
    assert (again.details.adapter, again.lane) == (asked.adapter, asked.lane)
    assert len(office.ask(ListAdapters(), AdapterList).adapters) == 1
    assert adapter.step().tokens == 12  # the lane goes on where it was


def test_a_creation_that_waited_for_room_gets_the_ids_that_it_was_given(serve: Serve) -> None:
    office = serve("quotas.adapters=1")
    first = create(office, "first")
    asked = CreateAdapter(name="second", lora=SPEC, adapter=new_adapter_id(), lane=new_lane_id())
    held = office.send(asked)
    assert "quotas.adapters" in office.wait_for_notice(held)

    office.ask(DeleteAdapter(adapter=first.id), Done)

    created = checked(office.wait(held), AdapterCreated)
    assert (created.details.adapter, created.lane) == (asked.adapter, asked.lane)


def test_a_lane_that_is_open_is_opened_again_as_it_is(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    lane = new_lane_id()
    opened = office.ask(OpenLane(adapter=adapter.id, lane=lane), LaneOpened)
    step = OptimStep(adapter=adapter.id, lane=lane, seq=1, learning_rate=0.1)
    office.ask(step, StepResult)

    again = office.ask(OpenLane(adapter=adapter.id, lane=lane), LaneOpened)

    assert opened.lane == again.lane == lane
    second = OptimStep(adapter=adapter.id, lane=lane, seq=2, learning_rate=0.1)
    assert office.ask(second, StepResult).applied is False


@pytest.mark.parametrize("data", [1, 2])
def test_a_save_that_runs_again_replaces_what_it_wrote_by_what_is_now(serve: Serve, data: int) -> None:
    """data: with others beside it on several threads, what runs again as new may end otherwise; here it is made to."""
    office = serve()
    adapter = create(office, "poet")
    train(adapter, 1)
    save = SaveCheckpoint(name="one", **adapter.next())  # type: ignore[arg-type]
    first = checked(outcome(office, save, "s"), CheckpointSaved)

    recover(adapter, 1)
    train(adapter, data)
    again = checked(outcome(office, save, "s"), CheckpointSaved)

    adapter.seq += 1
    assert (again == first) is (data == 1)
    [kept] = office.layout.checkpoint(adapter.id, "one").glob("*/checkpoint.json")
    assert json.loads(kept.read_text())["digest"] == again.digest
    assert adapter.refused(SaveCheckpoint, name="one").code == "checkpoint_exists"


def test_a_publish_that_runs_again_finds_the_version_that_it_wrote(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    train(adapter, 1)
    publish = PublishAdapter(**adapter.next())  # type: ignore[arg-type]
    first = checked(outcome(office, publish, "p"), VersionWritten)

    recover(adapter, 1)
    train(adapter, 1)
    again = checked(outcome(office, publish, "p"), VersionWritten)
    adapter.seq += 1
    other = adapter.run(PublishAdapter, VersionWritten)

    assert (again.record, first.record.request) == (first.record, "p")
    assert (first.record.number, other.record.number) == (1, 2)
    assert first.record.digest == other.record.digest


def test_a_publish_that_comes_again_though_a_snapshot_holds_what_came_after_it_finds_its_version(
    open_office: Serve,
) -> None:
    """Its version was written; the broker died before a sampler had served it, and nobody was told."""
    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    train(adapter, 1)
    publish = PublishAdapter(**adapter.next())  # type: ignore[arg-type]
    first = checked(outcome(office, publish, "p"), VersionWritten)
    stop(office, trainer)

    trainer, _ = start(office)
    recover(adapter, publish.seq + 3)
    again = checked(outcome(office, publish, "p"), VersionWritten)
    another = outcome(office, publish, "another")
    stop(office, trainer)

    assert again.record == first.record
    assert isinstance(another, Failed)
    assert another.code == "sequence_conflict"


def test_a_publish_that_comes_again_though_its_lane_has_ended_finds_its_version(open_office: Serve) -> None:
    """As above, and its session has ended since."""
    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    publish = PublishAdapter(**adapter.next())  # type: ignore[arg-type]
    first = checked(outcome(office, publish, "p"), VersionWritten)
    office.ask(UnloadAdapter(adapter=adapter.id), Done)
    stop(office, trainer)

    trainer, _ = start(office)
    office.ask(RecoverAdapter(adapter=adapter.id, snapshot="", lanes=()), Recovered, BROKER)
    again = checked(outcome(office, publish, "p"), VersionWritten)
    another = outcome(office, publish, "another")
    stop(office, trainer)

    assert again.record == first.record
    assert isinstance(another, Failed)
    assert another.code == "lane_lost"


def test_a_lane_that_was_not_among_those_brought_back_is_lost(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    recover(adapter, 1)
    adapter.lane = LaneId("ln-unknown")

    assert adapter.refused(OptimStep, learning_rate=0.1).code == "lane_lost"


@pytest.mark.parametrize("gathered", [True, False])
def test_an_unload_that_runs_again_takes_gradients_and_lanes_but_those_opened_since(
    serve: Serve, gathered: bool
) -> None:
    office = serve("trainer.window=exclusive", "trainer.window_lease_s=3600")
    adapter, calm = create(office, "poet"), create(office, "calm")
    train(calm, 1)
    train(adapter, 1)
    if gathered:
        adapter.forward_backward(9)
    first, later = adapter.lane, new_lane_id()

    office.ask(UnloadAgain(adapter=adapter.id, lanes=(LanePosition(lane=later, next_seq=1),)), Done)

    expected = train(calm, 2)
    lost = office.refused(OptimStep(adapter=adapter.id, lane=first, seq=adapter.seq + 1, learning_rate=0.1))
    assert lost.code == "lane_lost"
    adapter.lane, adapter.seq = later, 0
    assert not adapter.step().applied
    assert same(train(adapter, 2), expected)


def test_an_unload_of_somebody_elses_adapter_does_not_run_again(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    adapter.forward_backward(1)

    refused = office.refused(UnloadAgain(adapter=adapter.id, lanes=()), TenantId("stranger"))

    assert refused.code == "adapter_not_found"
    assert adapter.step().applied
