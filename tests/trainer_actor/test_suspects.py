"""What a dead trainer had in hand runs alone, until it is known what it does."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.config import TrainerConfig
from loractl.bus.ids import AdapterId, RequestId, TenantId
from loractl.bus.in_hand import SLOT_BYTES, SLOTS, Note, decode_note
from loractl.bus.messages import Envelope, Ping
from loractl.daemon.in_hand import read_in_hand
from loractl.tests.trainer_actor.test_schedule import Floor
from loractl.trainer_actor.in_hand import InHand
from loractl.trainer_actor.plan import Turn
from loractl.trainer_actor.queues import Queued


def held(floor: Floor, turn: Turn) -> list[Queued]:
    """The operations of a turn."""
    found: list[Queued] = []
    for share in (*turn.steps, *turn.late_steps, *turn.members):
        queue = [each for each in floor.lanes.queues.of(share.adapter) if each not in found]
        found += queue[: share.count]
    if turn.single is not None:
        found += [next(each for each in floor.lanes.queues.of(turn.single) if each not in found)]
    return found


def plan_and_run(floor: Floor) -> list[Queued]:
    """What the next turn holds; it runs then."""
    decision = floor.schedule.next_turn(floor.room(), floor.now)
    operations = held(floor, decision) if isinstance(decision, Turn) else []
    if isinstance(decision, Turn):
        floor.carry_out(decision)
        if decision.single is not None:
            floor.finish(decision.single)
            floor.lanes.queues.rotate(decision.single)
    return operations


def names(operations: list[Queued]) -> list[str]:
    return [f"{each.operation.adapter}{each.operation.seq}" for each in operations]


def test_a_suspect_shares_no_pass_and_its_neighbours_share_theirs() -> None:
    floor = Floor(suspects=("b1",), resident=["a", "b", "c"])  # type: ignore[list-item]
    for name in ("a", "b", "c"):
        floor.send(name, 20)

    turns = [sorted(names(plan_and_run(floor))) for _ in range(2)]

    assert sorted(turns) == [["a1", "c1"], ["b1"]]


def test_a_suspected_step_shares_no_batch_and_what_is_behind_it_waits_for_the_next_turn() -> None:
    floor = Floor(suspects=("b1",), resident=["a", "b"])  # type: ignore[list-item]
    floor.send("a", "o", "o")
    floor.send("b", "o", "o", 20)

    turns = [names(plan_and_run(floor)) for _ in range(3)]

    assert [turn for turn in turns if "b1" in turn] == [["b1"]]
    assert sorted(name for turn in turns for name in turn) == ["a1", "a2", "b1", "b2", "b3"]


def test_an_operation_is_suspect_by_the_id_of_its_request() -> None:
    floor = Floor(suspects=("a1",))
    floor.send("a", 20)

    [queued] = floor.lanes.queues.of(AdapterId("a"))

    assert queued.alone


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_waits_a_suspect_is_the_only_operation_of_its_turn_and_everything_ends(
    data: st.DataObject,
) -> None:
    adapters = ["a1-", "a2-", "b1-", "c1-"]
    sent = [f"{name}{seq}" for name in adapters for seq in range(1, 7)]
    suspects = data.draw(st.sets(st.sampled_from(sent), max_size=5))
    window = data.draw(st.sampled_from(["shared", "exclusive"]))
    floor = Floor(
        trainer=TrainerConfig(gather_s=0.0, slots=data.draw(st.integers(2, 4)), window=window),
        suspects=tuple(suspects),
    )
    kinds = [20, 60, 130, "o", "s", "o"]
    for name in data.draw(st.permutations(adapters)):
        floor.send(name, *data.draw(st.permutations(kinds)))

    for _ in range(400):
        operations = plan_and_run(floor)
        if any(each.alone for each in operations):
            assert len(operations) == 1, names(operations)
        floor.now += 0.0 if operations else 31.0
        if not floor.lanes.queues.adapters:
            break

    assert sorted(floor.ended) == sorted(sent)


# --- the note ------------------------------------------------------------------------------------


def ask(*requests: str) -> list[Envelope]:
    return [Envelope(request=RequestId(each), tenant=TenantId("t"), body=Ping()) for each in requests]


def test_the_note_says_what_is_in_hand_and_nothing_once_it_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "run" / "in_hand"
    in_hand = InHand.open(file)

    in_hand.take(ask("a", "b" * 500))
    both = read_in_hand(file)
    in_hand.leave_to_disk(ask("s"))
    in_hand.take(ask("c"))
    beside_a_job = read_in_hand(file)
    in_hand.take(())
    job_alone = read_in_hand(file)
    in_hand.leave_to_disk(())

    assert both == [("t", "a"), ("t", "b" * 500)]
    assert beside_a_job == [("t", "s"), ("t", "c")]
    assert job_alone == [("t", "s")]
    assert read_in_hand(file) == []


def test_what_was_in_hand_at_a_death_is_suspect_until_it_ends_whoever_else_dies_meanwhile(
    tmp_path: Path,
) -> None:
    file = tmp_path / "in_hand"
    InHand.open(file).take(ask("a", "b"))

    second = InHand.open(file)
    assert (set(second.suspects), read_in_hand(file)) == ({("t", "a"), ("t", "b")}, [])
    third = InHand.open(file)  # the second died before it had anything
    third.ended(ask("a"))
    third.take(ask("c"))

    assert set(InHand.open(file).suspects) == {("t", "b"), ("t", "c")}


def test_a_note_that_nobody_can_read_suspects_nobody(tmp_path: Path) -> None:
    file = tmp_path / "in_hand"
    file.write_bytes(b'{"in_hand": [["t", "a"]]}')

    assert read_in_hand(file) == []
    assert not InHand.open(file).suspects


def test_a_short_note_over_a_long_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    file = tmp_path / "in_hand"
    in_hand = InHand.open(file)
    in_hand.take(ask(*(f"{number:032}" for number in range(2000))))
    size = file.stat().st_size
    in_hand.take(ask("a"))

    assert file.stat().st_size == size
    assert decode_note(file.read_bytes())[1] == Note(in_hand=((TenantId("t"), RequestId("a")),))


@pytest.mark.parametrize("whole_bytes", [0, 1, 15, 16, 4096, 20_000])
def test_a_kill_in_the_middle_of_a_note_leaves_the_one_before(tmp_path: Path, whole_bytes: int) -> None:
    file = tmp_path / "in_hand"
    in_hand = InHand.open(file)
    in_hand.take(ask(*(f"{number:032}" for number in range(900))))
    in_hand.take(ask("before"))
    before = file.read_bytes()
    in_hand.take(ask(*(f"{number:032}" for number in range(1000, 2000))))
    after = file.read_bytes()

    begin = next(at for at in range(len(before)) if before[at] != after[at])
    file.write_bytes(after[: begin + whole_bytes] + before[begin + whole_bytes :])

    assert read_in_hand(file) == [("t", "before")]
    assert set(InHand.open(file).suspects) == {("t", "before")}


def test_a_note_that_is_written_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    file = tmp_path / "in_hand"
    in_hand = InHand.open(file)
    monkeypatch.setattr(os, "pwrite", lambda to, data, at: write(to, data[:7], at))

    in_hand.take(ask("a", "b"))

    assert read_in_hand(file) == [("t", "a"), ("t", "b")]


def test_a_note_that_could_not_be_written_leaves_the_one_before_and_the_next_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(to: int, data: bytes, at: int) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "no space")
        return write(to, data[:20], at)

    write = os.pwrite
    file = tmp_path / "in_hand"
    in_hand = InHand.open(file)
    in_hand.take(ask("a"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        in_hand.take(ask("b"))
        in_hand.take(ask("c"))
    kept = read_in_hand(file)
    in_hand.take(ask("d"))

    assert kept == [("t", "a")]
    assert read_in_hand(file) == [("t", "d")]


def test_a_note_of_too_much_says_a_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "in_hand"
    in_hand = InHand.open(file)

    in_hand.take(ask(*(f"{number:032}" for number in range(9000))))

    assert 1000 < len(read_in_hand(file)) < 9000
    assert file.stat().st_size == SLOTS * SLOT_BYTES
