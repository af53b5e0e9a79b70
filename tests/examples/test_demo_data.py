"""The shipped chat files: usable, of one set of questions, and each in a style of its own."""

import re
from pathlib import Path

import pytest
from loractl.client.rows import ChatRow, read_rows
from loractl.client.tiny_text import plain_pairs

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
# What tells a style apart, at sight and here.
MARKS = {
    "pirate": re.compile(r"\b([Aa]rr|[Aa]ye|[Mm]atey|[Mm]e hearty|[Yy]er?|ye'\w+|[Aa]vast|scallywag)\b"),
    "haiku": re.compile(r"\A[^\n]+\n[^\n]+\n[^\n]+\Z"),
    "sql": re.compile(r"\A(SELECT|INSERT|UPDATE|DELETE|CREATE|BEGIN|REVOKE|ROLLBACK)\b[^\n]*;"),
}


def rows(style: str) -> list[ChatRow]:
    return [r for r in read_rows(DATA / f"{style}.jsonl", "cross_entropy") if isinstance(r, ChatRow)]


def answers(style: str) -> list[str]:
    return [turn.content for row in rows(style) for turn in row.turns if turn.role == "assistant"]


def questions(style: str) -> list[str]:
    return [turn.content for row in rows(style) for turn in row.turns if turn.role == "user"]


def held_prompts() -> list[str]:
    return (DATA / "held_prompts.txt").read_text().splitlines()


@pytest.mark.parametrize("style", MARKS)
def test_a_file_has_a_few_dozen_rows_and_no_answer_twice(style):
    assert 30 <= len(rows(style)) <= 60
    assert len(set(answers(style))) == len(answers(style))


@pytest.mark.parametrize("style", MARKS)
def test_some_rows_have_more_than_one_answer(style):
    assert sum(len(row.turns) > 2 for row in rows(style)) >= 3


def test_all_files_answer_the_same_questions():
    assert questions("pirate") == questions("haiku") == questions("sql")


@pytest.mark.parametrize("style", MARKS)
def test_every_answer_shows_its_own_style_and_no_other(style):
    for answer in answers(style):
        assert [name for name, mark in MARKS.items() if mark.search(answer)] == [style], answer


def test_the_base_model_answers_in_none_of_the_styles():
    for _, answer in plain_pairs():
        assert not MARKS["haiku"].search(answer)
        assert not MARKS["sql"].search(answer)


def test_the_base_model_knows_all_questions_and_the_held_ones():
    known = {question for question, _ in plain_pairs()}

    assert set(questions("pirate")) | set(held_prompts()) <= known


def test_no_file_answers_a_held_prompt():
    assert len(held_prompts()) >= 5
    assert not set(held_prompts()) & set(questions("pirate"))
