"""What runs next."""

from collections import deque

from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.messages import OptimStep, RefuseOperation, SaveCheckpoint
from loractl.trainer_actor.lanes import Operation, Queued
from loractl.trainer_actor.plan import Share, next_turn, turn_sizes

A, B = AdapterId("ad-a"), AdapterId("ad-b")
LANE = LaneId("ln-1")


def heavy(seq: int) -> Operation:
    return SaveCheckpoint(adapter=A, lane=LANE, seq=seq, name="x")


def light(seq: int) -> Operation:
    return OptimStep(adapter=A, lane=LANE, seq=seq, learning_rate=0.1)


def queue(*operations: Operation) -> deque[Queued]:
    return deque(Queued(operation, b"", []) for operation in operations)


def shares(**queues: deque[Queued]) -> tuple[Share, ...]:
    turn = next_turn({AdapterId(name): each for name, each in queues.items()})
    assert turn is not None
    return turn.shares


def test_nothing_runnable_is_no_turn() -> None:
    assert next_turn({}) is None


def test_the_adapter_whose_turn_it_is_gets_one_heavy_operation() -> None:
    assert shares(a=queue(heavy(1), heavy(2)), b=queue(heavy(1))) == (Share(AdapterId("a"), 1),)


def test_light_operations_travel_with_the_one_in_front_of_them() -> None:
    assert shares(a=queue(heavy(1), light(2), heavy(3), light(4))) == (Share(AdapterId("a"), 2),)
    assert shares(a=queue(light(1), light(2), heavy(3))) == (Share(AdapterId("a"), 2),)


def test_a_refusal_is_light() -> None:
    refusal = RefuseOperation(adapter=A, lane=LANE, seq=2, code="invalid_data", message="no")

    assert shares(a=queue(heavy(1), refusal, light(3), heavy(4))) == (Share(AdapterId("a"), 3),)


def test_turns_take_up_the_whole_queue() -> None:
    assert [*turn_sizes(queue(light(1), light(2), heavy(3), light(4), heavy(5)))] == [2, 2, 1]
    assert [*turn_sizes(queue())] == []
