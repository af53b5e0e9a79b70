"""Training files: good rows are read, and every bad one says where it is and what is wrong."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.errors import InvalidData
from loractl.bus.messages import LossName
from loractl.client.rows import BadRows, ChatRow, SampledRow, Turn, parse_rows, read_rows

SAMPLED = {"prompt_tokens": [1, 2], "tokens": [3, 4], "logprobs": [-1.0, -2], "advantages": [0.5, 1]}


def reason(row: object, loss: str = "cross_entropy") -> str:
    text = row if isinstance(row, str) else json.dumps(row)
    good, bad = parse_rows([text], loss)
    assert not good
    return bad[0].reason


def test_a_chat_row_keeps_its_turns_and_its_line():
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}

    good, bad = parse_rows(["", json.dumps(row)], "cross_entropy")

    assert good == [ChatRow(2, (Turn("user", "hi"), Turn("assistant", "yo")))]
    assert bad == []


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, start):
    file = tmp_path / "rows.jsonl"
    file.write_text(start + '{"prompt": "hi", "completion": "yo"}\r\n', encoding="utf-8")

    assert len(read_rows(file, "cross_entropy")) == 1


def test_prompt_and_completion_are_one_user_and_one_assistant_turn():
    good, _ = parse_rows(['{"prompt": "hi", "completion": "yo"}'], "cross_entropy")

    assert good == [ChatRow(1, (Turn("user", "hi"), Turn("assistant", "yo")), is_completion=True)]


@pytest.mark.parametrize("loss", [loss for loss in get_args(LossName) if loss != "cross_entropy"])
def test_sampled_rows_carry_logprobs_and_advantages(loss):
    good, _ = parse_rows([json.dumps(SAMPLED)], loss)

    assert good == [SampledRow(1, (1, 2), (3, 4), (-1.0, -2.0), (0.5, 1.0))]


def test_one_advantage_stands_for_every_token():
    row = {**SAMPLED, "advantage": -1}
    del row["advantages"]

    good, _ = parse_rows([json.dumps(row)], "ppo")

    assert good[0].advantages == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{nope", "not JSON"),
        ("[1]", "a list"),
        ("3", "a number"),
        ("9" * 5000, "too long"),
        ("[" * 100_000, "too deeply"),
        ({}, "neither 'messages' nor"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hi"}, "'messages' is a string"),
        ('{"prompt": "hi\\ud800", "completion": "yo"}', "'prompt' is not Unicode text at character 3"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "no assistant turn"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, "message 1: has the role 'bot'"),
        ({"messages": [{"role": "user"}]}, "message 1: no 'content'"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "message 1: 'content' is a list"),
        ({"messages": [7]}, "message 1: is a number"),
        ({"messages": [{"role": "user", "content": "a", "weight": 0}]}, "'weight' is not used here"),
        ({"prompt": "hi"}, "no 'completion'"),
        ({"prompt": "hi", "completion": "yo", "id": 3}, "'id' is not used here"),
        (SAMPLED, "--loss importance_sampling"),
    ],
)
def test_a_bad_chat_row_says_what_is_wrong(row, says):
    assert says in reason(row)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": []}, "'tokens' is empty"),
        ({"prompt_tokens": []}, "'prompt_tokens' is empty"),
        ({"tokens": [1.5, 2]}, "token ids"),
        ({"tokens": [True, 2]}, "token ids"),
        ({"tokens": [-1, 2]}, "token ids"),
        ({"logprobs": [1]}, "1 logprobs for 2 tokens"),
        ({"advantages": [1, 2, 3]}, "3 advantages for 2 tokens"),
        ({"logprobs": [float("nan"), 1]}, "finite"),
        ({"logprobs": [10**400, 1]}, "finite"),
        ({"logprobs": "x"}, "'logprobs' is a string"),
    ],
)
def test_a_bad_sampled_row_says_what_is_wrong(change, says):
    assert says in reason({**SAMPLED, **change}, "ppo")


def test_a_chat_row_cannot_feed_a_loss_that_needs_advantages():
    assert "--loss cross_entropy" in reason({"prompt": "hi", "completion": "yo"}, "ppo")


def test_every_bad_row_is_reported():
    good, bad = parse_rows(["{", '{"prompt": "a", "completion": "b"}', "[]", "{}"], "cross_entropy")

    assert len(good) == 1
    assert [row.line for row in bad] == [1, 3, 4]


def test_an_empty_or_missing_file_is_refused(tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")

    with pytest.raises(InvalidData, match=r'is empty: .*"messages"'):
        read_rows(empty, "cross_entropy")
    with pytest.raises(InvalidData, match=r'is empty: .*"advantages"'):
        read_rows(empty, "cispo")
    with pytest.raises(InvalidData, match="cannot read"):
        read_rows(tmp_path / "missing.jsonl", "cross_entropy")


def test_a_file_with_bad_rows_is_refused_with_all_of_them(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{}\n\n[]\n')

    with pytest.raises(BadRows, match="2 of 3 rows") as caught:
        read_rows(file, "cross_entropy")

    assert [row.line for row in caught.value.rows] == [2, 4]


@given(st.text())
def test_no_line_escapes_as_another_error(text):
    good, bad = parse_rows([text], "cross_entropy")

    assert len(good) + len(bad) == (1 if text.strip() else 0)
