"""Why an operation waits: told once, in words that are true."""

from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import Done, Envelope, OptimStep, SaveCheckpoint, Waiting
from loractl.trainer_actor.fingerprint import fingerprint
from loractl.trainer_actor.lanes import Lanes, Operation
from loractl.trainer_actor.notices import Ahead, Notices, Outlook
from loractl.trainer_actor.plan import next_turn

NAMES = ("a", "b", "c")


class Hall:
    """Lanes of three adapters, and the notices about what comes in."""

    def __init__(self) -> None:
        self.lanes = Lanes(gap_timeout_s=10.0, kept_bytes=1 << 20)
        self.notices = Notices()
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

    def told(self) -> dict[str, str]:
        answers = self.notices.due(self.lanes)
        assert all(isinstance(answer.body, Waiting) for answer in answers)
        assert len({answer.to.request for answer in answers}) == len(answers)
        return {answer.to.request: answer.body.reason for answer in answers}  # type: ignore[union-attr]

    def turn(self) -> list[str]:
        turn = next_turn(self.lanes.runnable())
        ran = []
        for share in turn.shares if turn else ():
            for queued in self.lanes.take(share.adapter, share.count):
                self.lanes.finish(queued, Done())
                ran.append(f"{share.adapter}{queued.operation.seq}")
        return ran


def test_what_runs_in_the_next_turn_is_not_spoken_of() -> None:
    hall = Hall()

    hall.send("a", 1)
    hall.send("a", 2, light=True)

    assert hall.told() == {}


def test_an_operation_behind_a_missing_number_names_it() -> None:
    hall = Hall()

    hall.send("a", 3)
    hall.send("a", 2)

    expected = "waits for operation 1 of this adapter, which has not arrived yet"
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


def test_operations_of_others_that_run_before_it_are_counted() -> None:
    hall = Hall()
    for name in ("a", "b"):
        for seq in (1, 2, 3):
            hall.send(name, seq)
    hall.told()

    hall.send("c", 1)
    hall.send("c", 2)

    assert hall.told() == {
        "c1": "2 operations of 2 other adapters run before it",
        "c2": "4 operations of 2 other adapters run before it",
    }


def test_one_operation_of_one_other_adapter_is_spoken_of_in_the_singular() -> None:
    hall = Hall()
    hall.send("a", 1)

    hall.send("b", 1)

    assert hall.told() == {"b1": "1 operation of another adapter runs before it"}


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


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=25))
def test_what_is_said_to_run_before_an_operation_is_what_then_runs_before_it(
    sent: list[tuple[str, bool]],
) -> None:
    hall = Hall()
    seqs = dict.fromkeys(NAMES, 0)
    operations: dict[str, Operation] = {}
    for name, light in sent:
        seqs[name] += 1
        operations[f"{name}{seqs[name]}"] = hall.send(name, seqs[name], light=light)
    outlook = Outlook(hall.lanes.runnable())
    said = {label: outlook.ahead_of(operation) for label, operation in operations.items()}

    ran: list[str] = []
    while turn := hall.turn():
        for label in turn:
            others = [each for each in ran if each[0] != label[0]]
            own = len(ran) - len(others)
            assert said[label] == Ahead(len(others), len({each[0] for each in others}), own)
        ran += turn

    assert set(ran) == set(operations)
