"""Following events: gapless and in order, whatever is lost, late or doubled."""

import random

from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.follower import ANSWER_S, Event, EventFollower, News, TableQuestions
from loractl.bus.ids import AdapterId
from loractl.bus.messages import AdapterDeleted, Done, VersionTable


def event(number: int) -> AdapterDeleted:
    return AdapterDeleted(number=number, adapter=AdapterId(f"ad-{number}"))


def table(last_event: int) -> VersionTable:
    return VersionTable(last_event=last_event, records=())


def test_the_table_comes_first() -> None:
    follower = EventFollower()

    assert follower.behind
    assert follower.hear(event(5)) == []
    assert follower.hear(table(4)) == [table(4), event(5)]
    assert not follower.behind


def test_events_follow_the_table_one_by_one() -> None:
    follower = EventFollower()
    follower.hear(table(0))

    assert follower.hear(event(1)) == [event(1)]
    assert follower.hear(event(2)) == [event(2)]


def test_a_gap_waits_for_a_table() -> None:
    follower = EventFollower()
    follower.hear(table(0))

    assert follower.hear(event(2)) == []
    assert follower.behind
    assert follower.hear(event(3)) == []
    assert follower.hear(table(2)) == [table(2), event(3)]
    assert not follower.behind


def test_a_table_older_than_the_gap_does_not_close_it() -> None:
    follower = EventFollower()
    follower.hear(table(0))
    follower.hear(event(3))

    assert follower.hear(table(1)) == [table(1)]
    assert follower.behind
    assert follower.hear(table(3)) == [table(3)]
    assert not follower.behind


def test_what_is_known_already_is_no_news() -> None:
    follower = EventFollower()
    follower.hear(table(4))

    assert follower.hear(event(4)) == []
    assert follower.hear(table(4)) == []
    assert follower.hear(table(3)) == []
    assert follower.hear(Done()) == []


@given(
    count=st.integers(0, 12),
    lost=st.sets(st.integers(1, 12)),
    tables=st.lists(st.integers(0, 12), max_size=4),
    seed=st.integers(0, 2**16),
)
def test_nothing_is_missed_and_nothing_comes_twice(
    count: int, lost: set[int], tables: list[int], seed: int
) -> None:
    follower = EventFollower()
    arriving: list[Event | VersionTable] = [event(n) for n in range(1, count + 1) if n not in lost]
    arriving += [table(min(number, count)) for number in tables]
    random.Random(seed).shuffle(arriving)

    news: list[News] = [item for message in [*arriving, table(count)] for item in follower.hear(message)]

    # A follower's picture: a table replaces it, an event adds to it.
    known = -1
    for item in news:
        if isinstance(item, VersionTable):
            assert item.last_event >= known
            known = item.last_event
        else:
            assert item.number == known + 1
            known = item.number
    assert known == count
    assert not follower.behind


# --- asking for the table ----------------------------------------------------------------------------


def test_one_question_is_under_way_and_what_was_wanted_meanwhile_is_asked_once_behind_it() -> None:
    questions = TableQuestions()

    first = questions.ask(0.0)
    assert first is not None
    assert [questions.ask(0.1) for _ in range(100)] == [None] * 100
    second = questions.answered(first, 0.2)

    assert second is not None
    assert questions.answered(second, 0.3) is None
    assert questions.ask(0.4) is not None


def test_a_question_without_an_answer_is_taken_for_lost_and_its_late_answer_asks_nothing() -> None:
    questions = TableQuestions()
    first = questions.ask(0.0)
    assert first is not None
    assert questions.ask(ANSWER_S / 2) is None

    second = questions.ask(ANSWER_S)

    assert second is not None
    assert questions.answered(first, ANSWER_S + 1) is None
    assert questions.under_way == second
