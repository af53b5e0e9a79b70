"""Order, resends, gaps and tenants, through a real link."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from loractl.bus.ids import LOCAL_TENANT, LaneId, TenantId
from loractl.bus.messages import (
    Abort,
    AdapterCreated,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DeleteAdapter,
    DescribeModel,
    Done,
    Echo,
    Echoed,
    Failed,
    LaneOpened,
    ListAdapters,
    LoadCheckpoint,
    LoraSpec,
    ModelDescribed,
    OpenLane,
    OptimStep,
    PassResult,
    SaveCheckpoint,
    StepResult,
)
from loractl.tests.trainer_actor.loop.harness import Office, checked, create, pass_over, same

Serve = Callable[..., Office]
STRANGER = TenantId("stranger")


def test_pipelined_operations_run_in_their_order(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    requests = [
        office.send(pass_over(1, **adapter.next())),
        office.send(OptimStep(learning_rate=0.1, **adapter.next())),
        office.send(pass_over(2, **adapter.next())),
        office.send(OptimStep(learning_rate=0.1, **adapter.next())),
    ]

    answers = [office.wait(request) for request in requests]

    assert [a.step for a in answers if isinstance(a, StepResult)] == [1, 2]
    assert [request for request in office.arrived if request in requests] == requests


def test_a_resend_reads_the_first_outcome_and_trains_nothing(serve: Serve) -> None:
    office = serve()
    plain, resent = create(office, "plain"), create(office, "resent")
    results = []
    for adapter in (plain, resent):
        operation = pass_over(1, **adapter.next())
        first = office.ask(operation, PassResult)
        if adapter is resent:
            again = office.ask(operation, PassResult)
            assert again.logprobs.tobytes() == first.logprobs.tobytes()
        step = OptimStep(learning_rate=0.1, **adapter.next())
        assert office.ask(step, StepResult).step == 1
        if adapter is resent:
            assert office.ask(step, StepResult).step == 1
        results.append([adapter.forward_backward(2).logprobs])

    assert same(results[0], results[1])


def test_a_resend_that_meets_its_first_in_the_mailbox_runs_once(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    operation = pass_over(1, **adapter.next())

    requests = [office.send(operation) for _ in range(5)]

    logprobs = {checked(office.wait(request), PassResult).logprobs.tobytes() for request in requests}
    assert len(logprobs) == 1
    assert adapter.step().tokens == 12


def test_a_number_with_other_content_is_a_conflict_and_does_no_harm(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    operation = pass_over(1, **adapter.next())
    office.ask(operation, PassResult)

    changed = replace(operation, weights=np.zeros(12, np.float32))

    assert office.refused(changed).code == "sequence_conflict"
    assert adapter.step().tokens == 12


def test_a_gap_fails_what_waits_behind_it_and_the_lane_goes_on(serve: Serve) -> None:
    office = serve("trainer.lane_gap_timeout_s=0.5")
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    lost = OptimStep(learning_rate=0.1, **adapter.next())
    behind = [office.send(pass_over(2, **adapter.next())), office.send(pass_over(3, **adapter.next()))]

    answers = [office.wait(request) for request in behind]

    assert {answer.code for answer in answers if isinstance(answer, Failed)} == {"sequence_gap"}
    assert office.refused(lost).code == "sequence_gap"
    step = adapter.step()
    assert (step.applied, step.tokens) == (True, 12)


def test_an_operation_of_a_lane_that_nobody_knows_names_the_step(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    adapter.forward_backward(1)
    adapter.step()
    adapter.lane = LaneId("ln-unknown")

    error = adapter.refused(OptimStep, learning_rate=0.1)

    assert (error.code, error.retryable) == ("lane_lost", True)
    assert "step 1" in error.message
    assert "new lane" in error.message


def test_two_lanes_on_one_adapter_take_turns_on_the_same_weights(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    other = office.ask(OpenLane(adapter=adapter.id), LaneOpened)

    step = OptimStep(adapter=adapter.id, lane=other.lane, seq=1, learning_rate=0.1)

    assert office.ask(step, StepResult).tokens == 12
    assert adapter.step().applied is False


def test_of_eight_simultaneous_creations_of_one_name_exactly_one_wins(serve: Serve) -> None:
    office = serve()
    spec = LoraSpec(rank=2, alpha=4.0, seed=1)

    answers = [
        office.wait(request)
        for request in [office.send(CreateAdapter(name="poet", lora=spec)) for _ in range(8)]
    ]

    assert sum(isinstance(answer, AdapterCreated) for answer in answers) == 1
    assert [a.code for a in answers if isinstance(a, Failed)] == ["adapter_exists"] * 7
    assert len(office.ask(ListAdapters(), AdapterList).adapters) == 1


def test_a_creation_that_is_refused_takes_neither_name_nor_memory(serve: Serve) -> None:
    # One slot, and room for the states of two adapters of rank 4.
    office = serve("trainer.slots=1", f"trainer.host_bytes={2 * 131072}", "trainer.disk_bytes=0")
    first, second = create(office, "first"), create(office, "second")
    first.forward_backward(1)
    second.forward_backward(1)
    spec = LoraSpec(rank=4, alpha=8.0, seed=1)

    for _ in range(3):
        error = office.refused(CreateAdapter(name="third", lora=spec))
        assert error.code == "out_of_slots"
        assert str(2 * 131072) in error.message
    assert office.refused(CreateAdapter(name="wide", lora=replace(spec, rank=99))).code == "invalid_request"
    assert office.refused(CreateAdapter(name="../up", lora=spec)).code == "invalid_name"

    office.ask(DeleteAdapter(adapter=first.id), Done)
    third = create(office, "third")
    third.forward_backward(1)
    second.forward_backward(2)


def test_another_tenant_meets_an_adapter_that_does_not_exist(serve: Serve) -> None:
    office = serve()
    mine = create(office, "poet")
    mine.run(SaveCheckpoint, CheckpointSaved, name="first")
    theirs = create(office, "poet", tenant=STRANGER)
    operation = pass_over(1, **mine.next())

    codes = [
        office.refused(message, STRANGER).code
        for message in (
            OpenLane(adapter=mine.id),
            DeleteAdapter(adapter=mine.id),
            operation,
            LoadCheckpoint(source=mine.id, name="first", **theirs.next()),
        )
    ]

    assert codes == ["adapter_not_found"] * 4
    assert "poet" not in office.refused(OpenLane(adapter=mine.id), STRANGER).message
    listed = office.ask(ListAdapters(), AdapterList, STRANGER).adapters
    assert [details.adapter for details in listed] == [theirs.id]
    office.ask(operation, PassResult)


def test_deleting_an_adapter_answers_what_waits_and_leaves_its_neighbours(serve: Serve) -> None:
    office = serve()
    doomed, neighbour = create(office, "doomed"), create(office, "neighbour")
    neighbour.forward_backward(1)
    doomed.next()
    early = office.send(pass_over(1, **doomed.next()))

    office.ask(DeleteAdapter(adapter=doomed.id), Done)

    assert office.wait(early).code == "aborted"  # type: ignore[attr-defined]
    assert doomed.refused(OptimStep, learning_rate=0.1).code == "adapter_not_found"
    assert office.refused(ListAdapters(name="doomed")).code == "adapter_not_found"
    assert neighbour.step().tokens == 12
    assert create(office, "doomed").id != doomed.id


def test_an_adapters_details_follow_what_it_does(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    adapter.step()
    adapter.run(SaveCheckpoint, CheckpointSaved, name="first")
    adapter.forward_backward(1)
    adapter.step()

    [details] = office.ask(ListAdapters(name="poet"), AdapterList).adapters

    assert (details.step, details.checkpoint_step, details.version) == (2, 1, 0)
    assert details.parameters > 0
    assert details.tenant == LOCAL_TENANT


def test_the_trainer_describes_its_model_and_echoes(serve: Serve) -> None:
    office = serve()
    payload = np.arange(5, dtype=np.uint8)

    model = office.ask(DescribeModel(), ModelDescribed).model
    echoed = office.ask(Echo(payload=payload), Echoed)

    assert (model.name, model.family, model.max_sequence_tokens) == ("tiny", "qwen3", 64)
    assert echoed.payload.tolist() == [0, 1, 2, 3, 4]


def test_a_message_for_somebody_else_is_refused_and_the_loop_lives(serve: Serve) -> None:
    office = serve()

    error = office.refused(Abort(target=office.send(DescribeModel())))

    assert error.code == "not_supported"
    create(office, "poet").forward_backward(1)


@pytest.mark.parametrize("seq", [0, -3, 10**9])
def test_a_number_out_of_range_is_refused(serve: Serve, seq: int) -> None:
    adapter = create(serve(), "poet")
    adapter.seq = seq - 1

    assert adapter.refused(OptimStep, learning_rate=0.1).code == "sequence_out_of_range"

    adapter.seq = 0
    assert adapter.step().applied is False
