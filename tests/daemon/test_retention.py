"""What recovery needs stays; of the rest, what is too old or too large goes."""

import pytest
from loractl.bus.ids import NO_LANE, LaneId
from loractl.bus.messages import DeleteCheckpoint, OptimStep, UnloadAdapter
from loractl.daemon.journal.retention import Entry, Needed, Verdict, Want, judge, needed_from
from loractl.tests.daemon.journal_entries import ADAPTER, LANE, snapshot

OLDEST = 100.0


def entry(
    seq: int = 1,
    *,
    came: float = 200.0,
    order: int | None = 9,
    whole: bool = True,
    again: bool = False,
    kind: str = OptimStep.kind,
    lane: LaneId = LANE,
) -> Entry:
    return Entry(
        number=1,
        kind=kind,
        adapter=ADAPTER,
        lane=lane,
        seq=seq,
        order=order,
        again=again,
        came=came,
        size_bytes=10,
        whole=whole,
    )


def test_without_a_snapshot_all_lanes_are_needed_from_their_opening_on():
    assert needed_from(None, [(LANE, 3), (LaneId("ln-2"), 4)]) == Needed({LANE: 0, LaneId("ln-2"): 0}, 3)


def test_a_snapshot_spares_what_it_holds_and_lanes_that_closed_before_it():
    closed, later = LaneId("ln-2"), LaneId("ln-3")

    needed = needed_from(snapshot(20, ln_1=5), [(LANE, 3), (closed, 4), (later, 21)])

    assert needed.lanes == {LANE: 5, later: 0}


def test_unloads_are_needed_that_ended_a_lane_which_runs_again():
    assert needed_from(snapshot(20, ln_1=5), [(LaneId("ln-2"), 21)]) == Needed(
        {LANE: 5, LaneId("ln-2"): 0}, 20
    )
    assert needed_from(snapshot(20), [(LaneId("ln-2"), 23)]) == Needed({LaneId("ln-2"): 0}, 23)
    assert needed_from(snapshot(20), [(LANE, 3)]) == Needed()


@pytest.mark.parametrize("want", Want)
def test_of_what_has_no_lane_only_such_unloads_stay_whatever_their_age(want: Want):
    kinds = ((UnloadAdapter.kind, 8), (UnloadAdapter.kind, 9), (DeleteCheckpoint.kind, 9))

    judged = [
        judge(
            entry(0, kind=kind, lane=NO_LANE, order=order, came=0.0),
            Needed({LANE: 5}, 8),
            want,
            oldest=OLDEST,
        )
        for kind, order in kinds
    ]

    assert judged == [Verdict.DELETE, Verdict.KEEP, Verdict.DELETE]


@pytest.mark.parametrize("want", Want)
def test_what_recovery_needs_stays_whatever_its_age(want: Want):
    assert judge(entry(5, came=0.0), Needed({LANE: 5}), want, oldest=OLDEST) is Verdict.KEEP
    assert judge(entry(0, came=0.0), Needed({LANE: 0}), want, oldest=OLDEST) is Verdict.KEEP


@pytest.mark.parametrize("want", Want)
def test_what_has_no_outcome_stays_whatever_its_age(want: Want):
    assert judge(entry(came=0.0, order=None), Needed(), want, oldest=OLDEST) is Verdict.KEEP


@pytest.mark.parametrize("want", Want)
def test_history_that_is_too_old_goes(want: Want):
    assert judge(entry(4, came=99.0), Needed({LANE: 5}), want, oldest=OLDEST) is Verdict.DELETE


def test_history_that_is_not_too_old_goes_only_where_bytes_are_too_many_frames_first():
    judged = [judge(entry(4), Needed({LANE: 5}), want, oldest=OLDEST) for want in Want]

    assert judged == [Verdict.KEEP, Verdict.STRIP, Verdict.DELETE]


def test_what_would_run_again_if_it_were_sent_again_keeps_its_frames():
    assert judge(entry(again=True), Needed(), Want.FEWER_BYTES, oldest=OLDEST) is Verdict.KEEP
    assert judge(entry(whole=False), Needed(), Want.FEWER_BYTES, oldest=OLDEST) is Verdict.KEEP
