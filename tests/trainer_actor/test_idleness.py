"""Which adapters are idle for long enough to leave memory."""

from loractl.bus.ids import AdapterId
from loractl.trainer_actor.idleness import Idleness

A, B = AdapterId("a"), AdapterId("b")


def test_an_adapter_is_idle_once_it_was_not_used_for_so_long() -> None:
    idle = Idleness(10.0)
    idle.used(A)

    assert idle.next(100.0) is None
    assert idle.next(109.9) is None
    assert idle.next(110.0) == A


def test_an_idle_adapter_is_told_once_until_it_is_used_again() -> None:
    idle = Idleness(10.0)
    idle.used(A)
    idle.next(0.0)
    assert idle.next(10.0) == A

    assert idle.next(30.0) is None

    idle.used(A)
    idle.next(30.0)
    assert idle.next(40.0) == A


def test_use_begins_the_time_anew_and_the_longest_idle_comes_first() -> None:
    idle = Idleness(10.0)
    idle.used(A)
    idle.next(0.0)
    idle.used(B)
    idle.next(5.0)
    idle.used(A)
    idle.next(8.0)

    assert idle.next(16.0) == B
    assert idle.next(16.0) is None
    assert idle.next(18.0) == A


def test_an_adapter_that_is_gone_is_never_idle() -> None:
    idle = Idleness(10.0)
    idle.used(A)
    idle.next(0.0)
    idle.gone(A)

    assert idle.next(100.0) is None
