"""The table of step windows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.errors import WindowOpen
from loractl.bus.ids import LaneId
from loractl.trainer_actor.windows import TRANSITIONS, Event, Phase, Window


def test_forward_backward_opens_and_optim_step_commits() -> None:
    window = Window().after(Event.GATHERED).after(Event.GATHERED)
    committed = window.after(Event.COMMITTED, step=1)

    assert window.phase is Phase.OPEN
    assert committed == Window(Phase.CLOSED, step=1)


def test_a_failed_member_changes_nothing() -> None:
    for window in (Window(), Window().after(Event.GATHERED)):
        assert window.after(Event.FAILED) == window


def test_a_step_on_nothing_is_an_exact_no_op() -> None:
    assert Window().after(Event.STEPPED_ON_NOTHING) == Window()


def test_an_open_window_cannot_step_on_nothing_and_a_closed_one_cannot_commit() -> None:
    with pytest.raises(AssertionError, match="OPEN"):
        Window().after(Event.GATHERED).after(Event.STEPPED_ON_NOTHING)
    with pytest.raises(AssertionError, match="CLOSED"):
        Window().after(Event.COMMITTED, step=1)


@pytest.mark.parametrize("event", [Event.SAVED, Event.PUBLISHED, Event.SCORED])
def test_looking_at_an_adapter_leaves_its_window_open(event: Event) -> None:
    assert Window().after(Event.GATHERED).after(event).phase is Phase.OPEN


def test_loading_drops_what_was_gathered_unless_the_checkpoint_brings_its_own() -> None:
    window = Window().after(Event.GATHERED)

    assert window.after(Event.REPLACED, step=7) == Window(Phase.CLOSED, step=7)
    assert window.after(Event.REPLACED_MIDWAY, step=7).phase is Phase.OPEN


def test_only_the_lane_that_opened_a_window_may_replace_the_weights_beneath_it() -> None:
    mine, other = LaneId("ln-1"), LaneId("ln-2")
    window = Window(step=3).after(Event.GATHERED, lane=mine).after(Event.GATHERED, lane=other)

    window.check_replaceable(mine)
    with pytest.raises(WindowOpen, match=r"since step 3.*optim_step"):
        window.check_replaceable(other)
    window.after(Event.COMMITTED, step=4).check_replaceable(other)


def test_what_fails_or_only_looks_opens_no_window() -> None:
    for event in (Event.FAILED, Event.SCORED, Event.SAVED, Event.PUBLISHED):
        assert Window().after(event, lane=LaneId("ln-1")) == Window()


def test_nothing_follows_deletion() -> None:
    assert not [event for (phase, event) in TRANSITIONS if phase is Phase.DELETED]


def test_every_event_is_legal_somewhere() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert len(TRANSITIONS) < len(list(itertools.product(Phase, Event)))


@given(st.lists(st.sampled_from(sorted(Event, key=lambda e: e.value)), max_size=30))
def test_no_run_of_events_leaves_the_table_or_loses_a_step(events: list[Event]) -> None:
    window = Window()
    for event in events:
        if (window.phase, event) not in TRANSITIONS:
            continue
        stepping = event in {Event.COMMITTED, Event.REPLACED, Event.REPLACED_MIDWAY}
        after = window.after(event, step=window.step + 1 if stepping else None)

        assert after.step == window.step + stepping
        window = after
