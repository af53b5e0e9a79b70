"""When actors count as hung, start again, and are given up."""

import math
from dataclasses import replace

from loractl.bus.config import DaemonConfig
from loractl.daemon.restarts import Lifeline

CONFIG = DaemonConfig(
    restart_first_s=0.5, restart_max_s=30.0, restart_limit=5, ready_timeout_s=600.0, heartbeat_timeout_s=30.0
)


def test_pauses_double_up_to_the_longest():
    lifeline = Lifeline(replace(CONFIG, restart_limit=100))

    pauses = [lifeline.died(100.0) - 100.0 for _ in range(9)]

    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert lifeline.restarts == 9


def test_an_actor_is_given_up_after_so_many_deaths_in_a_row():
    lifeline = Lifeline(CONFIG)

    ends = [lifeline.died(0.0) for _ in range(5)]

    assert ends[3] < math.inf
    assert ends[4] == math.inf
    assert lifeline.restarts == 4


def test_a_life_that_went_well_begins_the_row_anew():
    lifeline = Lifeline(CONFIG)
    lifeline.died(0.0)
    lifeline.died(0.0)
    lifeline.started(10.0)
    lifeline.ready(20.0)

    assert lifeline.died(51.0) == 51.5


def test_dying_soon_after_each_ready_goes_on_with_the_row():
    lifeline = Lifeline(CONFIG)

    for _ in range(4):
        lifeline.started(0.0)
        lifeline.ready(1.0)
        assert lifeline.died(2.0) < math.inf
    lifeline.started(0.0)
    lifeline.ready(1.0)

    assert lifeline.died(2.0) == math.inf


def test_an_actor_that_cannot_start_is_given_up_at_once():
    assert Lifeline(CONFIG).died(0.0, hopeless=True) == math.inf


def test_a_loading_actor_is_overdue_only_when_its_start_takes_too_long_whatever_its_heart_does():
    lifeline = Lifeline(CONFIG)
    lifeline.started(0.0)
    lifeline.heard(599.0)

    assert lifeline.overdue(599.9) is None
    assert lifeline.overdue(600.0) == "was not ready after 600 s"


def ready_actor() -> Lifeline:
    lifeline = Lifeline(CONFIG)
    lifeline.started(0.0)
    lifeline.ready(0.0)
    return lifeline


def test_a_ready_actor_is_overdue_when_it_says_twice_that_it_stands_still_for_too_long():
    lifeline = ready_actor()

    lifeline.heard(600.0, busy_s=599.0, at="a pass")
    lifeline.heard(601.0, busy_s=600.0, at="a pass")
    assert lifeline.overdue(601.0) is None
    lifeline.heard(602.0, busy_s=601.0, at="a pass")

    assert lifeline.next_deadline() == 602.0
    assert lifeline.overdue(602.0) == "got no further for 601 s with a pass"


def test_an_actor_that_slept_with_its_machine_and_goes_on_is_not_overdue():
    lifeline = ready_actor()

    for now in (1000.0, 2000.0, 3000.0):
        lifeline.heard(now, busy_s=990.0, at="a pass")
        lifeline.heard(now + 1, busy_s=0.5, at="a pass")
        assert lifeline.overdue(now + 1) is None


def test_where_it_is_switched_off_an_actor_may_stand_still_for_ever():
    lifeline = Lifeline(replace(CONFIG, stuck_s=0.0))
    lifeline.started(0.0)
    lifeline.ready(0.0)

    for now in (1e6, 1e6 + 1):
        lifeline.heard(now, busy_s=1e6)

    assert lifeline.overdue(1e6 + 1) is None


def test_the_next_life_of_an_actor_that_stood_still_begins_anew():
    lifeline = ready_actor()
    for now in (700.0, 701.0):
        lifeline.heard(now, busy_s=600.0)
    lifeline.died(701.0)
    lifeline.started(702.0)
    lifeline.ready(703.0)

    assert lifeline.overdue(703.0) is None


def test_a_ready_actor_is_overdue_when_nothing_is_heard():
    lifeline = Lifeline(CONFIG)
    lifeline.started(0.0)
    lifeline.ready(10.0)
    lifeline.heard(50.0)

    assert lifeline.next_deadline() == 80.0
    assert lifeline.overdue(79.9) is None
    assert lifeline.overdue(80.0) == "sent no heartbeat for 30 s"
