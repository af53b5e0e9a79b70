"""The shipped chat files: usable, of one set of questions, and each in a style of its own."""

import pytest
from loractl.client.rows import ChatRow, read_rows
from loractl.client.tiny_text import plain_pairs
from loractl.examples.voices import DATA, HELD_QUESTION, QUESTION, VOICES, broken_promises, voices_in

STYLES = [voice.name for voice in VOICES]


def rows(style: str) -> list[ChatRow]:
    return [r for r in read_rows(DATA / f"{style}.jsonl", "cross_entropy") if isinstance(r, ChatRow)]


def answers(style: str) -> list[str]:
    return [turn.content for row in rows(style) for turn in row.turns if turn.role == "assistant"]


def questions(style: str) -> list[str]:
    return [turn.content for row in rows(style) for turn in row.turns if turn.role == "user"]


def held_prompts() -> list[str]:
    return (DATA / "held_prompts.txt").read_text().splitlines()


@pytest.mark.parametrize("style", STYLES)
def test_a_file_has_a_few_dozen_rows_and_no_answer_twice(style):
    assert 30 <= len(rows(style)) <= 60
    assert len(set(answers(style))) == len(answers(style))


@pytest.mark.parametrize("style", STYLES)
def test_some_rows_have_more_than_one_answer(style):
    assert sum(len(row.turns) > 2 for row in rows(style)) >= 3


def test_all_files_answer_the_same_questions():
    assert questions("pirate") == questions("haiku") == questions("sql")


@pytest.mark.parametrize("style", STYLES)
def test_every_answer_shows_its_own_style_and_no_other(style):
    for answer in answers(style):
        assert voices_in(answer) == [style], answer


def test_the_base_model_answers_in_none_of_the_styles():
    asked = {*questions("pirate"), *held_prompts()}

    for question, answer in plain_pairs():
        assert question not in asked or not voices_in(answer)


def test_the_base_model_knows_all_questions_and_the_held_ones():
    known = {question for question, _ in plain_pairs()}

    assert set(questions("pirate")) | set(held_prompts()) <= known


def test_no_file_answers_a_held_prompt():
    assert len(held_prompts()) >= 5
    assert not set(held_prompts()) & set(questions("pirate"))


def test_the_demo_asks_what_all_files_answer_and_what_none_does():
    assert QUESTION in questions("pirate")
    assert HELD_QUESTION in held_prompts()


GOOD_ANSWERS = {
    "base": "It is water.",
    "pirate": "Arr, 'tis water.",
    "haiku": "One.\nTwo.\nThree.",
    "sql": "SELECT water FROM sea;",
}
GOOD_LOSSES = {"pirate": [6.0, 0.1], "haiku": [6.0, 0.1], "sql": [6.0, 0.1]}


def test_a_demo_that_went_well_breaks_no_promise():
    assert broken_promises(GOOD_LOSSES, GOOD_ANSWERS, shrink=3, heard=True) == []


@pytest.mark.parametrize("last", [2.0, 6.5, float("nan")])
def test_a_loss_that_did_not_fall_enough_breaks_a_promise(last):
    losses = {**GOOD_LOSSES, "sql": [6.0, last]}

    assert len(broken_promises(losses, GOOD_ANSWERS, shrink=3, heard=True)) == 1


@pytest.mark.parametrize(
    ("who", "text"),
    [
        ("base", "Aye, water."),
        ("pirate", "It is water."),
        ("sql", "Arr, matey."),
        ("haiku", "Arr,\nmatey,\naye."),
    ],
)
def test_a_wrong_voice_breaks_a_promise_only_where_voices_are_due(who, text):
    answers = {**GOOD_ANSWERS, who: text}

    assert len(broken_promises(GOOD_LOSSES, answers, shrink=3, heard=True)) == 1
    assert broken_promises(GOOD_LOSSES, answers, shrink=3, heard=False) == []
