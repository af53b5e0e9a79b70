"""In which order operations go to a trainer again: no lane has a hole, and nothing is taken for another."""

from loractl.bus.ids import AdapterId, LaneId, RequestId
from loractl.bus.messages import ForwardBackward, LanePosition, OptimStep, PublishAdapter, UnloadAdapter
from loractl.daemon.journal.records import Logged
from loractl.daemon.replay import OURS, order_of
from loractl.tests.daemon.office import ALICE

A = AdapterId("ad-a")
LANE, OTHER = LaneId("ln-1"), LaneId("ln-2")


def op(
    seq: int,
    *,
    order: int | None = 0,
    failed: str = "",
    lane: LaneId = LANE,
    kind: str = OptimStep.kind,
    request: str = "",
) -> Logged:
    """order: of its outcome; 0 stands for its number. failed: the code."""
    return Logged(
        number=seq,
        key=(ALICE, RequestId(request or f"{lane}/{seq}/{failed}")),
        kind=kind,
        digest=b"",
        adapter=A,
        lane=lane,
        seq=seq,
        order=seq if order == 0 else order,
        failed=bool(failed),
    )


def sent(*logged: Logged, begin: int = 1, over: tuple[Logged, ...] = ()) -> tuple[list[str], list[str]]:
    """What goes first and what goes last, as `kind lane/number`. over: ended for the trainer though not yet for
    the journal."""
    positions = [LanePosition(lane=lane, next_seq=begin) for lane in (LANE, OTHER)]
    order = order_of(
        logged,
        positions,
        is_over=lambda each: each.order is not None or each in over,
        code_of=lambda each: str(each.key[1]).rpartition("/")[2],
    )
    return [_said(each) for each in order.first], [_said(each) for each in order.last]


def _said(logged: Logged) -> str:
    what = "nobody" if logged.key[0] == OURS else "failed" if logged.failed else logged.kind
    return f"{what} {logged.lane}/{logged.seq}"


def test_what_ended_comes_in_the_order_in_which_it_ended() -> None:
    logged = op(1, order=10), op(1, order=11, lane=OTHER), op(2, order=12)

    assert sent(*logged) == (["optim_step ln-1/1", "optim_step ln-2/1", "optim_step ln-1/2"], [])


def test_numbers_that_were_given_up_are_used_up_by_nobody() -> None:
    gap = op(3, failed="sequence_gap")

    assert sent(op(1), gap, op(4)) == (
        ["optim_step ln-1/1", "nobody ln-1/2", "failed ln-1/3", "optim_step ln-1/4"],
        [],
    )


def test_a_number_that_came_after_it_was_given_up_stays_so() -> None:
    logged = op(2, failed="sequence_gap", order=5), op(1, failed="sequence_gap", order=6), op(3, order=7)

    assert sent(*logged)[0] == ["failed ln-1/1", "failed ln-1/2", "optim_step ln-1/3"]


def test_a_publish_that_waits_for_a_sampler_holds_up_nothing_behind_it() -> None:
    publish = op(1, order=None, kind=PublishAdapter.kind)

    assert sent(op(2), publish, over=(publish,))[0] == ["publish_adapter ln-1/1", "optim_step ln-1/2"]


def test_what_the_trainer_must_have_ended_runs_in_its_place_though_the_journal_never_heard() -> None:
    lost = op(1, order=None, kind=ForwardBackward.kind)

    assert sent(op(2), lost) == (["forward_backward ln-1/1", "optim_step ln-1/2"], [])


def test_failures_that_were_never_on_the_lane_take_no_number() -> None:
    twice = op(1, failed="sequence_conflict", order=1, request="again/sequence_conflict")
    beyond = op(900, failed="sequence_out_of_range", order=2)
    lost = op(7, failed="lane_lost", order=3)

    assert sent(twice, beyond, lost, op(1, order=4)) == (["optim_step ln-1/1"], [])


def test_what_failed_at_a_number_at_which_another_succeeded_was_never_on_the_lane() -> None:
    for code in ("bad_frame", "invalid_data"):
        before = op(1, failed=code, order=1, request=f"first/{code}")

        assert sent(before, op(1, order=2), op(2, order=3))[0] == ["optim_step ln-1/1", "optim_step ln-1/2"]
    assert sent(op(1, failed="bad_frame", order=1)) == ([], [])


def test_a_quarantined_operation_waits_for_those_before_it_and_nobody_waits_for_it() -> None:
    before = op(1, order=None)
    poison = op(2, failed="quarantined")

    assert sent(poison, before) == ([], ["failed ln-1/2"])
    assert sent(poison, op(3, order=9), before)[0] == [
        "optim_step ln-1/1",
        "failed ln-1/2",
        "optim_step ln-1/3",
    ]


def test_an_operation_that_came_under_two_ids_goes_once() -> None:
    assert sent(op(1, order=1), op(1, order=2, request="again/"), op(2, order=3))[0] == [
        "optim_step ln-1/1",
        "optim_step ln-1/2",
    ]


def test_an_unload_runs_again_where_it_stood_and_takes_no_number() -> None:
    unload = op(0, order=2, kind=UnloadAdapter.kind, lane=LaneId(""))

    assert sent(op(1, order=1), unload, op(1, order=3, lane=OTHER)) == (
        ["optim_step ln-1/1", "unload_adapter /0", "optim_step ln-2/1"],
        [],
    )
