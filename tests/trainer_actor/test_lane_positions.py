"""Lanes that outlive their trainer: where they stand, and that they go on there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.errors import SequenceConflict, SequenceOutOfRange
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    Done,
    Envelope,
    Failed,
    LanePosition,
    OptimStep,
    RefuseOperation,
    SkipOperation,
    StepResult,
)
from loractl.trainer_actor.fingerprint import fingerprint
from loractl.trainer_actor.lanes import Answer, Lanes
from loractl.trainer_actor.queues import Operation

A = AdapterId("ad-a")
LANE, OTHER = LaneId("ln-1"), LaneId("ln-2")
STEPPED = StepResult(applied=True, step=1, grad_norm=1.0, learning_rate=0.1, tokens=1)


def lanes(*positions: LanePosition, per_adapter: int = 64) -> Lanes:
    made = Lanes(gap_timeout_s=10.0, kept_bytes=1 << 20, lanes_per_adapter=per_adapter)
    made.reopen(A, positions)
    return made


def at(lane: LaneId, next_seq: int) -> LanePosition:
    return LanePosition(lane=lane, next_seq=next_seq)


def step(seq: int, lane: LaneId = LANE) -> OptimStep:
    return OptimStep(adapter=A, lane=lane, seq=seq, learning_rate=0.1)


def send(to: Lanes, operation: Operation, request: str = "r", now: float = 0.0) -> list[Answer]:
    envelope = Envelope(request=RequestId(request), tenant=LOCAL_TENANT, body=operation)
    return to.admit(envelope, operation, fingerprint(operation), now)


def finish_first(of: Lanes, outcome: Done | Failed | StepResult = STEPPED) -> int:
    queued = of.queues.of(A)[0]
    of.finish(queued, outcome)
    return queued.operation.seq


def test_a_lane_stands_at_its_first_operation_that_has_not_ended() -> None:
    ours = lanes(at(LANE, 1))
    before = ours.positions(A)
    for seq in (1, 2, 4):
        send(ours, step(seq))
    finish_first(ours)

    assert before == (at(LANE, 1),)
    assert ours.positions(A) == (at(LANE, 2),)
    finish_first(ours)
    assert ours.positions(A) == (at(LANE, 3),)


def test_an_operation_that_is_with_the_disk_has_not_ended() -> None:
    ours = lanes(at(LANE, 1))
    send(ours, step(1))
    ours.queues.set_aside(A)

    assert ours.positions(A) == (at(LANE, 1),)


def test_numbers_that_were_given_up_have_ended() -> None:
    ours = lanes(at(LANE, 1))
    send(ours, step(3), now=0.0)
    ours.expire(10.0)

    assert ours.positions(A) == (at(LANE, 4),)


def test_a_lane_goes_on_where_it_stood() -> None:
    ours = lanes(at(LANE, 7))
    send(ours, step(8))

    assert not ours.queues.of(A)
    send(ours, step(7))
    assert [queued.operation.seq for queued in ours.queues.of(A)] == [7, 8]
    with pytest.raises(SequenceConflict, match="no longer kept"):
        send(ours, step(6))
    with pytest.raises(SequenceOutOfRange):
        send(ours, step(0))


def test_what_ended_on_a_lane_that_goes_back_runs_again() -> None:
    ours = lanes(at(LANE, 1))
    for seq in (1, 2):
        send(ours, step(seq))
        finish_first(ours)
    ours.close(A, Done())

    ours.reopen(A, [at(LANE, 2)])

    assert [answer.body for answer in send(ours, step(1))] == [STEPPED]
    assert send(ours, step(2)) == []
    assert finish_first(ours) == 2


def test_lanes_come_back_however_many_and_new_ones_bring_them_within_their_bound() -> None:
    ours = lanes(*(at(LaneId(f"ln-{number}"), 1) for number in range(6)), per_adapter=4)
    assert len(ours.positions(A)) == 6

    ours.open(A, LaneId("ln-new"))

    assert [each.lane for each in ours.positions(A)] == ["ln-3", "ln-4", "ln-5", "ln-new"]


def test_a_skipped_operation_uses_up_its_number_and_nobody_takes_its_answer_for_the_operations() -> None:
    ours = lanes(at(LANE, 1))
    skip = SkipOperation(adapter=A, lane=LANE, seq=1)
    send(ours, skip)
    send(ours, step(2))

    assert (finish_first(ours, Done()), finish_first(ours)) == (1, 2)
    with pytest.raises(SequenceConflict, match="no longer kept"):
        send(ours, step(1))


def test_a_refusal_that_stands_for_an_operation_answers_a_resend_of_it() -> None:
    ours = lanes(at(LANE, 1))
    failure = Failed(code="not_finite", message="no", retryable=False, fault="user")
    send(ours, RefuseOperation(adapter=A, lane=LANE, seq=1, code="not_finite", message="no"))
    finish_first(ours, failure)

    assert [answer.body for answer in send(ours, step(1), "again")] == [failure]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_trainer_that_dies_at_any_moment_leaves_lanes_that_run_every_number_once(
    data: st.DataObject,
) -> None:
    todo = {LANE: 1, OTHER: 1}
    ran: list[tuple[LaneId, int]] = []
    ours = lanes(at(LANE, 1), at(OTHER, 1))
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["send", "send", "run", "die"])):
            case "send":
                lane = data.draw(st.sampled_from([LANE, OTHER]))
                send(ours, step(todo[lane], lane))
                todo[lane] += 1
            case "run" if queue := ours.queues.of(A):
                ran.append((queue[0].operation.lane, finish_first(ours)))
            case "die":
                ours = lanes(*ours.positions(A))
                todo = {each.lane: each.next_seq for each in ours.positions(A)}

    while queue := ours.queues.of(A):
        ran.append((queue[0].operation.lane, finish_first(ours)))
    for lane in (LANE, OTHER):
        assert [seq for each, seq in ran if each == lane] == list(range(1, todo[lane]))
