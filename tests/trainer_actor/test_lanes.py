"""Lanes: any arrival order, one execution order; every operation exactly one outcome."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.errors import InvalidRequest, SequenceConflict
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import Done, Envelope, Failed, ForwardBackward, OptimStep, PassResult
from loractl.trainer_actor.fingerprint import fingerprint
from loractl.trainer_actor.lanes import Answer, Lanes
from loractl.trainer_actor.outcomes import Outcomes
from loractl.trainer_actor.queues import Queued

A, B = AdapterId("ad-a"), AdapterId("ad-b")
LANE, OTHER = LaneId("ln-1"), LaneId("ln-2")


def lanes(**settings_of: float) -> Lanes:
    made = Lanes(**{"gap_timeout_s": 10.0, "kept_bytes": 1 << 20, **settings_of})  # type: ignore[arg-type]
    made.open(A, LANE)
    return made


def step(seq: int, *, lane: LaneId = LANE, adapter: AdapterId = A, rate: float = 0.1) -> OptimStep:
    return OptimStep(adapter=adapter, lane=lane, seq=seq, learning_rate=rate)


def send(to: Lanes, operation: OptimStep, *, request: str = "r", now: float = 0.0) -> list[Answer]:
    envelope = Envelope(request=RequestId(request), tenant=LOCAL_TENANT, body=operation)
    return to.admit(envelope, operation, fingerprint(operation), now)


def first(of: Lanes, adapter: AdapterId) -> Queued:
    return of.queues.of(adapter)[0]


def run_all(of: Lanes) -> list[tuple[AdapterId, int]]:
    """One operation an adapter, in turns."""
    ran = []
    while adapters := of.queues.of_tenant(LOCAL_TENANT):
        adapter = next(iter(adapters))
        queued = first(of, adapter)
        of.finish(queued, Done())
        of.queues.rotate(adapter)
        ran.append((adapter, queued.operation.seq))
    return ran


def test_an_operation_waits_until_those_before_it_have_arrived() -> None:
    ours = lanes()

    send(ours, step(2))
    waiting = run_all(ours)
    send(ours, step(1))

    assert waiting == []
    assert run_all(ours) == [(A, 1), (A, 2)]


@given(st.permutations(range(1, 13)), st.lists(st.integers(1, 12), max_size=6))
def test_any_arrival_order_with_resends_gives_one_execution_order(order: list[int], again: list[int]) -> None:
    ours = lanes()
    ran: list[int] = []

    for seq in [*order, *again]:
        send(ours, step(seq))
        ran += [number for _, number in run_all(ours)]

    assert ran == list(range(1, 13))


@settings(max_examples=150)
@given(st.data())
def test_every_request_gets_exactly_one_answer(data: st.DataObject) -> None:
    ours = lanes()
    ours.open(B, OTHER)
    answers: list[Answer] = []
    now, sent = 0.0, 0
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["send", "send", "send", "run", "wait", "close"])):
            case "send":
                adapter, lane = data.draw(st.sampled_from([(A, LANE), (B, OTHER)]))
                operation = step(
                    data.draw(st.integers(1, 8)),
                    lane=lane,
                    adapter=adapter,
                    rate=data.draw(st.sampled_from([1, 2])),
                )
                if ours.knows(operation):
                    sent += 1
                    try:
                        answers += send(ours, operation, request=str(sent), now=now)
                    except SequenceConflict:
                        sent -= 1
            case "run":
                for adapter in list(ours.queues.of_tenant(LOCAL_TENANT))[:1]:
                    answers += ours.finish(first(ours, adapter), Done())
            case "wait":
                now += data.draw(st.sampled_from([1.0, 11.0]))
                answers += ours.expire(now)
            case "close":
                answers += ours.close(B, Done())

    answers += ours.close_all(Done())

    requests = [answer.to.request for answer in answers]
    assert len(requests) == len(set(requests)) == sent
    assert not ours.queues.adapters


def test_a_resend_reads_the_first_outcome_and_does_not_run() -> None:
    ours = lanes()
    send(ours, step(1))
    queued = first(ours, A)
    ours.finish(queued, Done())

    [answer] = send(ours, step(1), request="again")

    assert (answer.to.request, answer.body) == ("again", Done())
    assert not ours.queues.adapters


def test_a_resend_of_a_waiting_operation_is_answered_with_it() -> None:
    ours = lanes()
    send(ours, step(1), request="first")
    send(ours, step(1), request="second")
    queued = first(ours, A)

    answers = ours.finish(queued, Done())

    assert [answer.to.request for answer in answers] == ["first", "second"]


@pytest.mark.parametrize("state", ["waiting", "early", "done"])
def test_a_number_used_twice_with_other_content_is_refused(state: str) -> None:
    ours = lanes()
    seq = 2 if state == "early" else 1
    send(ours, step(seq, rate=1.0))
    if state == "done":
        run_all(ours)

    with pytest.raises(SequenceConflict):
        send(ours, step(seq, rate=2.0))


def test_a_failed_operation_has_used_up_its_number() -> None:
    ours = lanes()
    send(ours, step(1))
    queued = first(ours, A)
    failed = Failed(code="not_finite", message="", retryable=False, fault="user")
    ours.finish(queued, failed)

    send(ours, step(2))

    assert run_all(ours) == [(A, 2)]
    assert send(ours, step(1))[0].body == failed


def test_a_gap_that_is_not_filled_in_time_fails_what_waits_and_the_lane_goes_on() -> None:
    ours = lanes()
    send(ours, step(1), now=0.0)
    send(ours, step(3), request="third", now=1.0)
    send(ours, step(5), request="fifth", now=2.0)

    assert ours.expire(11.9) == []
    assert ours.next_expiry() == 12.0
    answers = ours.expire(12.0)
    send(ours, step(6), now=13.0)

    assert [(a.to.request, a.body.code) for a in answers] == [  # type: ignore[attr-defined]
        ("third", "sequence_gap"),
        ("fifth", "sequence_gap"),
    ]
    assert "operation 2" in answers[0].body.message  # type: ignore[attr-defined]
    assert run_all(ours) == [(A, 1), (A, 6)]
    assert ours.next_expiry() is None


def test_an_operation_that_arrives_after_its_gap_was_given_up_does_not_run() -> None:
    ours = lanes()
    send(ours, step(2), now=0.0)
    ours.expire(10.0)

    [answer] = send(ours, step(1), now=11.0)

    assert isinstance(answer.body, Failed)
    assert answer.body.code == "sequence_gap"
    assert not ours.queues.adapters


def test_a_new_gap_further_on_gets_the_whole_time() -> None:
    ours = lanes()
    send(ours, step(2), now=0.0)
    send(ours, step(4), now=1.0)
    send(ours, step(1), now=9.0)

    assert ours.expire(10.0) == []
    assert ours.next_expiry() == 19.0


def test_a_missing_number_gets_the_whole_time_from_the_latest_arrival_on() -> None:
    ours = lanes()
    send(ours, step(2), now=0.0)
    send(ours, step(3), now=9.0)

    assert ours.expire(18.0) == []
    assert ours.next_expiry() == 19.0


def test_operations_that_wait_for_a_busy_trainer_are_no_gap() -> None:
    ours = lanes()
    send(ours, step(1), now=0.0)
    send(ours, step(2), now=0.0)

    assert ours.expire(1000.0) == []
    assert run_all(ours) == [(A, 1), (A, 2)]


def test_a_number_out_of_range_is_refused_without_being_used_up() -> None:
    ours = lanes(max_ahead=8)

    for seq in (0, -1, 10):
        with pytest.raises(InvalidRequest):
            send(ours, step(seq))

    send(ours, step(1))
    assert run_all(ours) == [(A, 1)]


def test_closing_an_adapter_answers_all_its_waiting_operations_and_no_others() -> None:
    ours = lanes()
    ours.open(B, OTHER)
    send(ours, step(1), request="ready")
    send(ours, step(3), request="early")
    send(ours, step(1, lane=OTHER, adapter=B), request="bystander")

    answers = ours.close(A, Done())

    assert [answer.to.request for answer in answers] == ["ready", "early"]
    assert not ours.knows(step(2))
    assert run_all(ours) == [(B, 1)]


def test_a_lane_belongs_to_one_adapter() -> None:
    ours = lanes()

    assert ours.knows(step(1))
    assert not ours.knows(step(1, adapter=B))
    assert not ours.knows(step(1, lane=OTHER))


def test_two_lanes_of_an_adapter_share_its_queue_in_order_of_arrival() -> None:
    ours = lanes()
    ours.open(A, OTHER)

    send(ours, step(1))
    send(ours, step(1, lane=OTHER))
    send(ours, step(2))

    order = [(q.operation.lane, q.operation.seq) for q in ours.queues.of(A)]
    assert order == [(LANE, 1), (OTHER, 1), (LANE, 2)]


def test_the_longest_idle_lane_is_forgotten_when_too_many_are_open() -> None:
    ours = lanes(lanes_per_adapter=2)
    ours.open(A, OTHER)
    send(ours, step(1, lane=OTHER))

    ours.open(A, LaneId("ln-3"))

    assert not ours.knows(step(1))
    assert ours.knows(step(2, lane=OTHER))


def test_adapters_take_turns() -> None:
    ours = lanes()
    ours.open(B, OTHER)
    for seq in (1, 2, 3):
        send(ours, step(seq))
    send(ours, step(1, lane=OTHER, adapter=B))
    send(ours, step(2, lane=OTHER, adapter=B))

    assert run_all(ours) == [(A, 1), (B, 1), (A, 2), (B, 2), (A, 3)]


def test_outcomes_are_kept_within_their_bytes_and_what_is_forgotten_is_never_run_again() -> None:
    ours = lanes(kept_bytes=3000)
    big = PassResult(logprobs=np.zeros(250, np.float32), loss_terms=np.zeros(0, np.float32), metrics={})
    for seq in (1, 2, 3):
        send(ours, step(seq))
        queued = first(ours, A)
        ours.finish(queued, big)

    with pytest.raises(SequenceConflict, match="no longer kept"):
        send(ours, step(1))
    assert send(ours, step(3))[0].body is big


def test_the_outcome_store_counts_its_bytes() -> None:
    store = Outcomes(kept_bytes=5000)
    big = PassResult(logprobs=np.zeros(250, np.float32), loss_terms=np.zeros(0, np.float32), metrics={})

    for seq in range(50):
        store.put(LANE, seq, b"", big)

    assert store.size_bytes <= 5000
    assert len(store) == 3


class Compared(str):
    """A lane's id that counts what it is compared with."""

    __hash__ = str.__hash__
    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return str.__eq__(self, other)


def test_forgetting_a_lanes_outcomes_looks_at_that_lane_alone() -> None:
    store = Outcomes(kept_bytes=1 << 30)
    names = [LaneId(f"lane {number}") for number in range(100)]
    for seq in range(1, 21):
        for name in names:
            store.put(name, seq, b"", Done())
    each_bytes = store.size_bytes // len(store)

    store.forget(LaneId(Compared("lane 7")), 11)
    store.forget(LaneId(Compared("never was")), 1)

    assert Compared.count < 50
    assert (len(store), store.size_bytes) == (1990, 1990 * each_bytes)
    assert store.get(names[7], 10) is not None
    assert store.get(names[7], 11) is None
    assert store.get(names[8], 20) is not None


def test_what_went_for_space_is_forgotten_for_good() -> None:
    store = Outcomes(kept_bytes=3000)
    for seq in range(1, 50):
        store.put(LANE, seq, b"", Done())

    store.forget(LANE, 1)
    store.put(LANE, 1, b"", Done())

    assert len(store) == 1


def test_fingerprints_differ_by_any_field_and_ignore_the_order_of_settings() -> None:
    def passed(**changes: object) -> ForwardBackward:
        fields = {
            "adapter": A,
            "lane": LANE,
            "seq": 1,
            "lengths": np.array([2]),
            "tokens": np.array([1, 2]),
            "targets": np.array([2, 3]),
            "weights": np.ones(2, np.float32),
            "old_logprobs": np.zeros(0, np.float32),
            "advantages": np.zeros(0, np.float32),
            "loss": "ppo",
            "loss_config": {"a": 1.0, "b": 2.0},
            **changes,
        }
        return ForwardBackward(**fields)  # type: ignore[arg-type]

    same = passed(loss_config={"b": 2.0, "a": 1.0})
    others = [
        passed(tokens=np.array([1, 3])),
        passed(lengths=np.array([1, 1])),
        passed(loss_config={"a": 1.0}),
        passed(forward_only=True),
        passed(weights=np.array([1, 0.5], np.float32)),
    ]

    assert fingerprint(same) == fingerprint(passed())
    assert len({fingerprint(passed()), *(fingerprint(other) for other in others)}) == 6
