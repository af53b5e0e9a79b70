"""What a tenant's quotas hold back in the broker, what they say, and that nothing is held for ever."""

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.codec import decode
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import (
    AdapterDetails,
    AdapterList,
    DescribeModel,
    Done,
    Failed,
    ForwardBackward,
    ListAdapters,
    OptimStep,
    Waiting,
)
from loractl.daemon.decisions import Decision, Forward, Reply
from loractl.tests.daemon.office import (
    ALICE,
    ANN,
    BEN,
    BOB,
    LORA,
    TRAINER,
    Office,
    forward_backward,
    small,
)


def step(seq: int, lane: str = "ln-1") -> OptimStep:
    return OptimStep(adapter=AdapterId("ad-1"), lane=LaneId(lane), seq=seq, learning_rate=1e-3)


def quota_of(positions: int) -> Office:
    return Office(config=small(queued=positions)).all_ready()


def forwarded(office: Office, decisions: list[Decision]) -> list[tuple[str, int]]:
    """Lane and number of every operation that goes to the trainer."""
    bodies = [office.read(each) for each in decisions if isinstance(each, Forward)]
    return [(body.lane, body.seq) for body in bodies if isinstance(body, ForwardBackward | OptimStep)]


# --- positions with the trainer ------------------------------------------------------------------


def test_a_pass_beyond_the_queued_positions_waits_and_is_told_the_numbers():
    office = quota_of(4096)
    office.ask(forward_backward(1, positions=4000), request="r1")

    notice = office.only(office.ask(forward_backward(2, positions=100), request="r2"))

    assert notice == Waiting(
        reason="4,000 of 4,096 queued positions of this tenant are taken, and this takes 100; "
        "it goes on as they are done",
        cause="quota",
    )


def test_it_goes_on_as_they_are_done_and_is_told_that_it_waits_no_longer():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(2, positions=8), request="r2")

    _, forward, notice = office.answer(TRAINER, Done(), request="r1")

    assert isinstance(forward, Forward)
    assert office.read(notice) == Waiting(reason="", routine=True, cause="quota")


def test_a_pass_larger_than_the_quota_runs_when_nothing_else_is_with_the_trainer():
    office = quota_of(10)

    assert forwarded(office, office.ask(forward_backward(1, positions=50), request="r1"))
    assert not forwarded(office, office.ask(forward_backward(2, positions=1), request="r2"))


def test_a_large_pass_is_not_overtaken_for_ever_by_small_ones_of_other_lanes():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=6), request="r1")
    office.ask(forward_backward(1, positions=9, lane="large"), request="r2")

    assert not forwarded(office, office.ask(forward_backward(2, positions=1), request="r3"))
    assert forwarded(office, office.answer(TRAINER, Done(), request="r1")) == [("large", 1), ("ln-1", 2)]


def test_one_tenants_quota_is_no_other_tenants():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=10), request="r1")

    assert forwarded(office, office.ask(forward_backward(1, positions=10), request="r1", tenant=BOB))


def test_a_step_behind_a_pass_that_waits_goes_behind_it():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(2, positions=8), request="r2")

    notice = office.only(office.ask(step(3), request="r3"))

    assert isinstance(notice, Waiting)
    assert "8 of 10 queued positions" in notice.reason
    assert forwarded(office, office.answer(TRAINER, Done(), request="r1")) == [("ln-1", 2), ("ln-1", 3)]


def test_a_step_of_a_lane_in_which_nothing_waits_goes_at_once():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(1, positions=8, lane="other"), request="r2")

    assert forwarded(office, office.ask(step(2), request="r3")) == [("ln-1", 2)]


def test_questions_are_answered_whatever_waits():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(2, positions=8), request="r2")

    assert isinstance(office.ask(DescribeModel(), request="r3")[0], Forward)


def test_an_adapter_says_what_of_it_the_broker_holds_back():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(2, positions=8), request="r2")
    office.ask(step(3), request="r3")
    office.ask(ListAdapters(), request="r4")

    listed = office.only(office.answer(TRAINER, AdapterList(adapters=(details(queued=1),)), request="r4"))

    assert isinstance(listed, AdapterList)
    (found,) = listed.adapters
    assert (found.phase, found.queued) == ("running", 3)
    assert "8 of 10 queued positions" in found.waits_for


def details(queued: int) -> AdapterDetails:
    return AdapterDetails(
        adapter=AdapterId("ad-1"),
        tenant=ALICE,
        name="pirate",
        lora=LORA,
        step=0,
        version=0,
        checkpoint_step=-1,
        parameters=10,
        state_bytes=100,
        created_unix_s=0.0,
        phase="running",
        queued=queued,
    )


def test_a_number_that_was_overtaken_on_its_way_goes_at_once_for_its_lane_waits_for_it():
    office = quota_of(10)
    office.ask(forward_backward(3, positions=9), request="r3")

    assert forwarded(office, office.ask(forward_backward(2, positions=9), request="r2"))
    assert forwarded(office, office.ask(forward_backward(1, positions=9), request="r1"))


def test_what_a_lane_at_the_trainer_waits_for_goes_though_its_tenant_has_no_place_left():
    office = Office(config=small(inflight=2)).all_ready()
    for seq in (3, 4):
        office.ask(step(seq), request=f"r{seq}")

    assert not forwarded(office, office.ask(step(5), request="r5"))
    assert not forwarded(office, office.ask(step(1, "other"), request="other"))
    assert forwarded(office, office.ask(step(1), request="r1")) == [("ln-1", 1)]
    assert not forwarded(office, office.ask(step(2), request="r2"))
    assert forwarded(office, office.answer(TRAINER, Done(), request="r1")) == [("ln-1", 2)]
    assert not forwarded(office, office.answer(TRAINER, Done(), request="r2"))
    assert forwarded(office, office.answer(TRAINER, Done(), request="r3")) == [("ln-1", 5)]
    assert forwarded(office, office.answer(TRAINER, Done(), request="r4")) == [("other", 1)]


def test_what_a_lane_waited_for_waits_for_the_next_trainer_when_this_one_dies():
    office = Office(config=small(inflight=2)).all_ready()
    for seq in (3, 4, 1, 2):
        office.ask(step(seq), request=f"r{seq}")

    assert not forwarded(office, office.lose(TRAINER))
    assert forwarded(office, office.ready(TRAINER)) == [("ln-1", 2)]


def test_sending_the_last_number_first_gets_nobody_around_the_quota():
    office = quota_of(10)
    office.ask(step(100), request="r100")

    went = [
        forwarded(office, office.ask(forward_backward(seq, positions=8), request=f"r{seq}"))
        for seq in range(1, 50)
    ]

    assert sum(map(len, went)) == 2  # twice the quota at most
    assert forwarded(office, office.answer(TRAINER, Done(), request="r1")) == [("ln-1", 3)]


def test_a_dead_trainer_gives_all_positions_back():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=8), request="r1")
    office.ask(forward_backward(2, positions=8), request="r2")

    office.lose(TRAINER)

    assert forwarded(office, office.ready(TRAINER)) == [("ln-1", 2)]


def test_a_pass_that_nobody_can_read_is_refused_at_once_and_forgotten():
    office = quota_of(10)
    office.ask(forward_backward(1, positions=10), request="r1")
    broken = forward_backward(2, positions=10)
    object.__setattr__(broken, "lane", 7)

    for _ in range(2):
        refused = office.read(office.ask(broken, request="r2")[0])
        assert isinstance(refused, Failed)
        assert refused.code == "bad_frame"


Arrival = tuple[str, int, int]  # lane, number, positions


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """The operations of some lanes, in any order at all."""
    sizes = draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 3, 6, 9, 25]), max_size=7), max_size=4))
    sent = [(f"ln-{lane}", seq, size) for lane, each in enumerate(sizes) for seq, size in enumerate(each, 1)]
    return draw(st.permutations(sent))


@settings(max_examples=150, deadline=None)
@given(sent=arrivals(), inflight=st.sampled_from([1, 2, 4096]), random=st.randoms(use_true_random=False))
def test_whatever_order_operations_come_in_all_of_them_run_in_their_lanes_order(
    sent: list[Arrival], inflight: int, random: Random
):
    office, trainer = Office(config=small(queued=10, inflight=inflight)).all_ready(), Lanes()
    for lane, seq, positions in sent:
        body = forward_backward(seq, positions=positions, lane=lane) if positions else step(seq, lane)
        trainer.take(office, office.ask(body, request=f"{lane}/{seq}"))
        for _ in range(random.randrange(3)):
            trainer.answer_one(office, random)
    while trainer.answer_one(office, random):
        pass

    assert trainer.ran == len(sent), "something waits for ever"
    assert not office.broker._dispatch.waitlist.tenants()
    assert office.broker._dispatch.waitlist.positions.of(ALICE) == 0


@settings(max_examples=50, deadline=None)
@given(sent=arrivals(), random=st.randoms(use_true_random=False))
def test_operations_that_come_in_order_never_go_beyond_the_quota_but_a_larger_one_alone(
    sent: list[Arrival], random: Random
):
    office, trainer = quota_of(10), Lanes()
    for lane, seq, positions in sorted(sent, key=lambda each: each[1]):
        body = forward_backward(seq, positions=positions, lane=lane) if positions else step(seq, lane)
        trainer.take(office, office.ask(body, request=f"{lane}/{seq}"))
        while random.randrange(2) and trainer.answer_one(office, random):
            pass

        passes = [size for size in trainer.here.values() if size]
        assert sum(passes) <= 10 or len(passes) == 1


class Lanes:
    """The trainer's end, as far as order goes: a lane runs 1, 2, 3, … and waits for what is missing."""

    def __init__(self) -> None:
        self.expected: defaultdict[str, int] = defaultdict(lambda: 1)
        self.here: dict[tuple[str, int], int] = {}
        self.ran = 0

    def take(self, office: Office, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Forward):
                body = decode(decision.frames, office.config.limits).body
                assert isinstance(body, ForwardBackward | OptimStep)
                self.here[body.lane, body.seq] = len(body.tokens) if isinstance(body, ForwardBackward) else 0

    def answer_one(self, office: Office, random: Random) -> bool:
        runnable = sorted((lane, seq) for lane, seq in self.here if seq == self.expected[lane])
        if not runnable:
            return False
        lane, seq = random.choice(runnable)
        del self.here[lane, seq]
        self.expected[lane] += 1
        self.ran += 1
        self.take(office, office.answer(TRAINER, Done(), request=f"{lane}/{seq}"))
        return True


# --- bytes in the broker -------------------------------------------------------------------------


def test_what_waits_is_bounded_in_bytes_and_one_more_is_refused_with_the_numbers():
    office = Office(config=small(held=10_000))  # nobody is ready
    office.ask(forward_backward(1, positions=400), request="r1")

    refused = office.only(office.ask(forward_backward(2, positions=400), request="r2"))

    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable, refused.fault) == ("quota_exceeded", True, "user")
    assert "10,000 may wait (quotas.held_bytes)" in refused.message


@pytest.mark.parametrize("tenant", [ALICE, BOB])
def test_a_refused_one_may_come_again_and_another_tenant_is_not_touched(tenant: str):
    office = Office(config=small(held=10_000))
    office.ask(forward_backward(1, positions=400), request="r1", client=ANN)
    office.ask(forward_backward(2, positions=400), request="r2", client=ANN)
    if tenant == ALICE:
        office.ready(TRAINER)

    [decision] = office.ask(forward_backward(2, positions=400), request="r2", client=BEN, tenant=tenant)

    assert isinstance(decision, Forward if tenant == ALICE else Reply)
    assert tenant == ALICE or isinstance(office.read(decision), Waiting)


def test_bytes_are_given_back_as_what_waits_goes_on():
    office = Office(config=small(inflight=1, held=10_000)).all_ready()
    office.ask(forward_backward(1, positions=400), request="r1")
    office.ask(forward_backward(2, positions=400), request="r2")
    assert office.broker._dispatch.waitlist.waiting_bytes(ALICE) > 8000

    office.answer(TRAINER, Done(), request="r1")

    assert office.broker._dispatch.waitlist.waiting_bytes(ALICE) == 0
