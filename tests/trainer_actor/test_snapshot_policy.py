"""Who is snapshotted next: by age and by bytes, the longest waiting first, nobody for nothing."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.ids import AdapterId
from loractl.trainer_actor.snapshot_policy import LONGEST_RETRY_S, RETRY_S, SnapshotPolicy

A, B, C = (AdapterId(name) for name in "abc")


def test_nobody_is_due_who_did_nothing() -> None:
    policy = SnapshotPolicy(30.0, 1000)

    assert policy.next(1e9) is None
    assert policy.next_due() is None


def test_an_adapter_is_due_when_its_oldest_operation_is_old_enough() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 1, now=5.0)
    policy.ran(A, 1, now=34.0)

    assert policy.next_due() == 35.0
    assert policy.next(34.9) is None
    assert policy.next(35.0) == A


def test_an_adapter_is_due_at_once_when_its_operations_weigh_enough() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 600, now=5.0)
    policy.ran(B, 600, now=6.0)
    policy.ran(B, 600, now=7.0)

    assert policy.next(7.0) == B


def test_the_longest_waiting_comes_first() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    for adapter, at in ((B, 1.0), (A, 2.0), (C, 3.0)):
        policy.ran(adapter, 1, now=at)
    policy.ran(B, 1, now=20.0)

    order = []
    while (adapter := policy.next(100.0)) is not None:
        order.append(adapter)
        policy.taken(adapter)

    assert order == [B, A, C]


def test_what_runs_while_a_snapshot_is_written_is_owed_by_itself() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 1, now=0.0)
    policy.taken(A)
    policy.ran(A, 1, now=31.0)

    assert policy.next(32.0) is None
    assert policy.next_due() == 61.0


def test_one_that_could_not_be_written_is_tried_later_and_owes_all_of_it() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 600, now=0.0)
    owed = policy.taken(A)
    policy.ran(B, 1, now=1.0)
    policy.ran(A, 600, now=31.0)
    policy.not_taken(A, owed, now=32.0)

    assert policy.next(32.0) == B
    policy.taken(B)
    assert policy.next(32.0 + RETRY_S - 0.1) is None
    assert policy.next_due() == 32.0 + RETRY_S
    assert policy.next(32.0 + RETRY_S) == A


def written(policy: SnapshotPolicy, adapter: AdapterId, now: float) -> None:
    policy.taken(adapter)
    policy.told(adapter, now)
    policy.kept(adapter)


def test_one_that_can_never_be_written_is_tried_ever_less_and_holds_up_nobody() -> None:
    policy, now = SnapshotPolicy(30.0, 1000), 0.0
    failed, late = list[float](), list[float]()
    policy.ran(A, 1, now=0.0)

    while now < 3600.0:
        if now % 60 == 0:
            policy.ran(B, 1, now)
        if (due := policy.next(now)) == B:
            late.append(now % 60)
            written(policy, B, now)
        elif due == A:
            failed.append(now)
            policy.not_taken(A, policy.taken(A), now)
        now += 1.0

    pauses = [after - before for before, after in pairwise(failed)]
    assert max(late) <= 31.0
    assert len(late) == 60
    assert pauses[0] == RETRY_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY_S


def test_a_disk_that_takes_nobodys_is_tried_once_in_a_while_and_by_everybody_in_turn() -> None:
    policy, now, tried = SnapshotPolicy(30.0, 1000), 31.0, list[AdapterId]()
    for adapter in (A, B, C):
        policy.ran(adapter, 1, now=0.0)

    while now < 300.0:
        if (due := policy.next(now)) is not None:
            tried.append(due)
            policy.not_taken(due, policy.taken(due), now)
        now += 1.0

    assert len(tried) <= 2 + 270 / RETRY_S
    assert tried[:6] == [A, B, C, A, B, C]
    due = policy.next(400.0)
    assert due is not None
    written(policy, due, 400.0)
    assert policy.next(400.0) not in (None, due), "whoever waited for the disk goes on once it takes one"


def test_one_that_cannot_be_taken_just_now_is_left_out_and_the_next_one_is_not() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 1, now=0.0)
    policy.ran(B, 1, now=5.0)

    assert policy.next(31.0, besides=A) is None
    assert policy.next_due(besides=A) == 35.0
    assert policy.next(35.0, besides=A) == B
    assert policy.next(35.0) == A


def test_one_that_the_journal_does_not_take_is_followed_by_another() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    for adapter in (A, B):
        policy.ran(adapter, 1, now=0.0)
        policy.taken(adapter)
        policy.told(adapter, now=1.0)
    policy.kept(A)

    assert policy.next(30.9) is None
    assert policy.next(31.0) == B
    policy.taken(B)
    assert policy.next(1e9) is None


def test_one_that_nothing_could_run_again_for_is_due_at_once() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 1, now=3.0, at_once=True)

    assert policy.next(3.0) == A


def test_a_deleted_adapter_owes_nothing() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    policy.ran(A, 5000, now=0.0)
    policy.told(A, now=0.0)
    policy.gone(A)

    assert policy.next_due() is None


def test_at_a_stop_the_last_used_come_first() -> None:
    policy = SnapshotPolicy(30.0, 1000)
    for adapter, at in ((A, 1.0), (B, 2.0), (C, 3.0), (A, 4.0)):
        policy.ran(adapter, 1, now=at)

    assert policy.owing() == [A, C, B]


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 700), st.booleans()), max_size=40))
def test_whoever_owes_is_due_in_time_and_nobody_else_is(events: list[tuple[AdapterId, int, bool]]) -> None:
    policy, owed = SnapshotPolicy(10.0, 1000), dict[AdapterId, tuple[float, int]]()

    for now, (adapter, size, take) in enumerate(events):
        since, before = owed.get(adapter, (float(now), 0))
        owed[adapter] = since, before + size
        policy.ran(adapter, size, float(now))
        if take and (due := policy.next(float(now))) is not None:
            assert owed[due][0] + 10.0 <= now or owed[due][1] >= 1000
            policy.taken(due)
            del owed[due]

    assert sorted(policy.owing()) == sorted(owed)
    for _ in list(owed):
        due = policy.next(len(events) + 10.0)
        assert due is not None
        policy.taken(due)
    assert policy.next(1e9) is None
