"""Why an operation waits: told once, in words that are true."""

from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import Envelope, OptimStep, SaveCheckpoint, Waiting
from loractl.trainer_actor.fingerprint import fingerprint
from loractl.trainer_actor.lanes import Lanes
from loractl.trainer_actor.leases import Lease
from loractl.trainer_actor.notices import Notices
from loractl.trainer_actor.queues import Operation

NAMES = ("a", "b", "c")


class Hall:
    """Lanes of three adapters, and the notices about what comes in."""

    def __init__(self, *, fuse: bool = False, exclusive: bool = False) -> None:
        self.lanes = Lanes(gap_timeout_s=10.0, kept_bytes=1 << 20, pass_tokens=100)
        self.lease = Lease(exclusive, lease_s=30.0)
        self.notices = Notices(self.lanes, self.lease, fuse=fuse)
        for name in NAMES:
            self.lanes.open(AdapterId(name), LaneId(name))

    def send(self, name: str, seq: int, *, light: bool = False) -> Operation:
        fields = {"adapter": AdapterId(name), "lane": LaneId(name), "seq": seq}
        operation: Operation = (
            OptimStep(**fields, learning_rate=0.1) if light else SaveCheckpoint(**fields, name="x")
        )
        envelope = Envelope(request=RequestId(f"{name}{seq}"), tenant=LOCAL_TENANT, body=operation)
        if not self.lanes.admit(envelope, operation, fingerprint(operation), 0.0):
            self.notices.arrived(envelope, operation)
        return operation

    def told(self, now: float = 0.0) -> dict[str, str]:
        answers = self.notices.due(now)
        assert all(isinstance(answer.body, Waiting) and not answer.last for answer in answers)
        assert len({answer.to.request for answer in answers}) == len(answers)
        return {answer.to.request: answer.body.reason for answer in answers}  # type: ignore[union-attr]


def test_what_runs_in_the_next_turn_is_not_spoken_of() -> None:
    hall = Hall()

    hall.send("a", 1)
    hall.send("a", 2, light=True)

    assert hall.told() == {}


def test_an_operation_behind_a_missing_number_names_it() -> None:
    hall = Hall()

    hall.send("a", 3)
    hall.send("a", 2)

    expected = "operation 1 of this adapter has not arrived yet"
    assert hall.told() == {"a2": expected, "a3": expected}
    assert hall.told() == {}


def test_when_the_number_has_come_what_else_runs_before_it_is_said_once() -> None:
    hall = Hall()
    hall.send("a", 2)
    hall.send("a", 3)
    hall.told()

    hall.send("a", 1)

    assert hall.told() == {
        "a2": "1 operation of this adapter runs before it",
        "a3": "2 operations of this adapter run before it",
    }
    assert hall.told() == {}


def test_who_waits_for_a_number_is_looked_at_again_only_when_something_happens_in_its_lane() -> None:
    hall = Hall()
    for seq in range(2, 50):
        hall.send("a", seq)
    hall.told()
    looked_at: list[tuple[str, int]] = []
    before = hall.lanes.missing_before

    def missing_before(operation: Operation) -> int | None:
        looked_at.append((operation.adapter, operation.seq))
        return before(operation)

    hall.lanes.missing_before = missing_before  # type: ignore[method-assign]
    hall.send("b", 1)
    hall.told()
    apart = [*looked_at]
    hall.send("a", 1)

    assert apart == [("b", 1)]
    assert len(hall.told()) == 49


def test_that_others_take_turns_with_it_is_said() -> None:
    hall = Hall()
    for name in ("a", "b"):
        hall.send(name, 1)
    hall.told()

    hall.send("c", 1)
    hall.send("c", 2)

    assert hall.told() == {
        "c1": "takes turns with 2 other adapters",
        "c2": "takes turns with 2 other adapters; 1 operation of this adapter runs before it",
    }


def test_others_that_share_its_pass_are_no_news() -> None:
    hall = Hall(fuse=True)

    for name in NAMES:
        hall.send(name, 1)

    assert hall.told() == {}


def test_whoever_waits_for_an_exclusive_window_reads_how_long_at_most() -> None:
    hall = Hall(fuse=True, exclusive=True)
    hall.lease.ran(AdapterId("a"), open_window=True, now=0.0)

    hall.send("a", 1)
    hall.send("b", 1)

    reason = (
        "another adapter has the trainer for itself until its optim_step (trainer.window is exclusive), "
        "or for 20 s if its client says nothing more"
    )
    assert hall.told(now=10.0) == {"b1": reason}
    assert hall.notices.of(AdapterId("b"), 10.0) == reason


def test_what_an_adapters_next_operation_waits_for_can_be_asked() -> None:
    hall = Hall()
    hall.send("a", 2)
    hall.send("b", 1)
    hall.send("b", 2)

    assert hall.notices.of(AdapterId("a"), 0.0) == _missing(1)
    assert hall.notices.of(AdapterId("b"), 0.0) == ""
    assert hall.notices.of(AdapterId("c"), 0.0) == ""


def test_an_adapter_whose_operation_is_with_the_disk_says_so() -> None:
    hall = Hall()
    hall.send("a", 1)
    hall.send("b", 1)
    hall.told()

    hall.lanes.queues.set_aside(AdapterId("a"))
    hall.send("a", 3)

    assert hall.notices.of(AdapterId("a"), 0.0) == "its save_checkpoint is on its way to or from the disk"
    assert hall.notices.of(AdapterId("b"), 0.0) == ""
    assert hall.told() == {"a3": _missing(2)}

    hall.send("a", 2)
    assert hall.told() == {
        "a2": "takes turns with another adapter; 1 operation of this adapter runs before it",
        "a3": "takes turns with another adapter; 2 operations of this adapter run before it",
    }


def test_own_operations_that_run_before_it_are_no_news() -> None:
    hall = Hall()

    for seq in range(1, 5):
        hall.send("a", seq)

    assert hall.told() == {}


def test_an_operation_that_ended_behind_its_gap_is_not_spoken_of_again() -> None:
    hall = Hall()
    hall.send("a", 2)
    hall.told()

    hall.lanes.expire(now=100.0)

    assert hall.told() == {}


def _missing(number: int) -> str:
    return f"operation {number} of this adapter has not arrived yet"


def test_programs_read_whether_others_or_operations_of_the_same_adapter_come_first() -> None:
    hall = Hall()
    for seq in (2, 3):
        hall.send("a", seq)
    hall.notices.due(0.0)
    hall.send("a", 1)
    alone = hall.notices.due(0.0)
    hall.send("b", 1)
    crowded = hall.notices.due(0.0)

    assert {answer.body.cause for answer in alone} == {"own"}  # type: ignore[union-attr]
    assert {answer.body.cause for answer in crowded} == {"others"}  # type: ignore[union-attr]
