"""What an actor's heart tells of its work: the strand that has stood still for longest."""

from loractl.bus.pulse import Pulse


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_actor_that_waits_for_work_is_at_nothing():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.loop.turn("a pass")
    pulse.loop.rest()
    clock.now = 1000.0

    assert pulse.busy() == (0.0, "")


def test_the_strand_that_stands_still_is_told_though_others_get_on():
    clock = Clock()
    pulse = Pulse(clock)
    disk = pulse.strand()
    disk.turn("a save")
    for second in range(100):
        clock.now = float(second)
        pulse.loop.turn("a pass")

    assert pulse.busy() == (99.0, "a save")
    disk.rest()
    assert pulse.busy() == (0.0, "a pass")


def test_a_step_that_names_nothing_is_of_the_same_work():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.loop.turn("a pass")
    clock.now = 5.0
    pulse.loop.turn()
    clock.now = 7.0

    assert pulse.busy() == (2.0, "a pass")
