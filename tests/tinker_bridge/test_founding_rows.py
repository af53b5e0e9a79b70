"""Rows of chats, sampled texts and positions as the trainer's arrays, and prompts as tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.chat import ChatTokenizer
from loractl.bus.errors import InvalidData, InvalidRequest, LoractlError, NotSupported
from loractl.bus.loss_settings import LOSS_SETTINGS
from loractl.bus.messages import LossName, ModelDetails
from loractl.client.datums import pack
from loractl.client.rows import parse_rows
from loractl.client.text import ModelText
from loractl.client.tiny_model import make_tiny_model
from loractl.tinker_bridge.founding.bodies import Message, SampleBody, SamplingBody
from loractl.tinker_bridge.founding.datums import datum_at, inputs_of, prompt_tokens
from loractl.tinker_bridge.founding.facts import losses_facts
from loractl.tinker_bridge.founding.samples import prompts_of, sample_of
from loractl.tinker_bridge.founding.tokenizer import load_tokenizer
from loractl.tinker_bridge.wire.loss_inputs import LossInputs

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is the sea?"},
    {"role": "assistant", "content": "Water."},
    {"role": "user", "content": "And rain?"},
    {"role": "assistant", "content": "Water, too."},
]
SAMPLED = {"prompt_tokens": [1, 5, 6], "tokens": [7, 8], "logprobs": [-1.5, -0.5], "advantages": [1.0, -1.0]}
ALIGNED = {
    "tokens": [1, 5, 6, 7],
    "target_tokens": [5, 6, 7, 8],
    "mask": [0.0, 0.0, 1.0, 1.0],
    "logprobs": [0.0, 0.0, -1.5, -0.5],
    "advantages": [0.0, 0.0, 1.0, -1.0],
}
DATUM = {
    "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 5, 6, 7]}]},
    "loss_fn_inputs": {
        "target_tokens": {"data": [5, 6, 7, 8], "dtype": "int64", "shape": [4]},
        **{
            name: {"data": ALIGNED[name], "dtype": "float32", "shape": [4]}
            for name in ("mask", "logprobs", "advantages")
        },
    },
}
FIELDS = ("lengths", "tokens", "targets", "weights", "old_logprobs", "advantages")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(directory, steps=0)
    return directory


@pytest.fixture(scope="module")
def tokenizer(model: Path):
    return load_tokenizer(str(model))


def command_line_arrays(model: Path, tokenizer, rows: list[object], loss: LossName):
    """What `loractl train` sends for these rows."""
    details = ModelDetails(
        name="tiny",
        path=str(model),
        family="qwen3",
        vocab_size=1024,
        max_sequence_tokens=64,
        parameters=1,
        dtype="float32",
        weights="0123",
    )
    good, bad = parse_rows([json.dumps(row) for row in rows], loss)
    datums, unfit, _ = ModelText(details, tokenizer).datums(good, None)
    assert not bad
    assert not unfit
    return pack(datums, loss)


def read(tokenizer: ChatTokenizer, rows: Sequence[object], loss: LossName) -> LossInputs:
    return inputs_of([datum_at(tokenizer, index, row) for index, row in enumerate(rows)], loss)


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        ([{"messages": CHAT}], "cross_entropy"),
        ([{"prompt": "What is the sea?", "completion": "Water."}, {"messages": CHAT[1:3]}], "cross_entropy"),
        ([SAMPLED, {**SAMPLED, "prompt_tokens": [9]}], "importance_sampling"),
        ([{"prompt_tokens": [4], "tokens": [7, 8], "logprobs": [-1, -2], "advantage": 0.5}], "ppo"),
    ],
)
def test_rows_of_the_command_line_give_the_same_arrays(model, tokenizer, rows, loss):
    expected = command_line_arrays(model, tokenizer, rows, loss)

    inputs = read(tokenizer, rows, loss)

    for name in FIELDS:
        np.testing.assert_array_equal(getattr(inputs, name), getattr(expected, name), err_msg=name)


def test_a_bare_list_of_messages_is_a_chat(tokenizer):
    bare = read(tokenizer, [CHAT], "cross_entropy")
    named = read(tokenizer, [{"messages": CHAT}], "cross_entropy")

    np.testing.assert_array_equal(bare.tokens, named.tokens)
    said = [tokenizer.decode([t]) for t in bare.targets[bare.weights > 0]]
    assert "".join(said) == "Water.<|im_end|>Water, too.<|im_end|>"


@pytest.mark.parametrize("row", [ALIGNED, DATUM, {**SAMPLED, "target_tokens": SAMPLED["tokens"]}])
def test_a_sampled_text_can_be_written_in_three_ways(tokenizer, row):
    row = {key: value for key, value in row.items() if not ("prompt_tokens" in row and key == "tokens")}
    expected = read(tokenizer, [SAMPLED], "ppo")

    inputs = read(tokenizer, [row], "ppo")

    for name in FIELDS:
        np.testing.assert_array_equal(getattr(inputs, name), getattr(expected, name), err_msg=name)


def test_a_sampled_text_may_have_its_prompt_as_text_or_chat(tokenizer):
    rest = {key: value for key, value in SAMPLED.items() if key != "prompt_tokens"}
    said = {**rest, "prompt": "What is the sea?"}
    chat = {**rest, "prompt": [{"role": "user", "content": "What is the sea?"}]}

    first, second = (read(tokenizer, [row], "ppo").tokens for row in (said, chat))

    assert first.tolist() == second.tolist()
    assert first.tolist()[:-1] == prompt_tokens(tokenizer, "What is the sea?", raw=False)


def test_positions_without_weights_count_all(tokenizer):
    inputs = read(tokenizer, [{"tokens": [1, 2], "target_tokens": [2, 3]}], "cross_entropy")

    assert inputs.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("text", "a row is a chat or an object"),
        ({"text": "hello"}, "the form of this row is not known"),
        ([], "no messages"),
        ([{"role": "user", "content": "Hi"}], "nothing to learn"),
        ([{"role": "robot", "content": "Hi"}], "robot"),
        ([{"role": "assistant", "content": 3}], "content"),
        ([{"role": "assistant", "content": "a\ud800"}], "not Unicode text"),
        ({"messages": CHAT, "tools": []}, "tools"),
        ({"prompt": "", "completion": "x", "weight": 1}, "weight"),
        ({"prompt_tokens": [], "tokens": [1], "logprobs": [0], "advantages": [0]}, "empty"),
        (
            {"prompt_tokens": [1], "prompt": "x", "tokens": [1], "logprobs": [0], "advantages": [0]},
            "not both",
        ),
        ({"prompt_tokens": [1], "tokens": [1, 2], "logprobs": [0], "advantages": [0, 0]}, "1 logprobs for 2"),
        ({**SAMPLED, "prompt_tokens": [1, {"role": "user", "content": "x"}]}, "tokens or a chat"),
        ({"tokens": [1], "target_tokens": [1, 2]}, "target_tokens has the shape"),
        ({"tokens": [-1], "target_tokens": [1]}, "tokens"),
        ({"tokens": [2**70], "target_tokens": [1]}, "tokens"),
        ({**SAMPLED}, "cross_entropy does not use"),
        ({"model_input": {"chunks": [{"type": "image"}]}, "loss_fn_inputs": {}}, "image"),
        ({"model_input": {"chunks": "a\ud800"}, "loss_fn_inputs": {}}, "surrogates"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_a_reason(tokenizer, row, said):
    with pytest.raises(LoractlError, match=said) as refused:
        read(tokenizer, [row], "cross_entropy")

    assert isinstance(refused.value, InvalidData | InvalidRequest | NotSupported)


def test_the_reason_says_which_row(tokenizer):
    with pytest.raises(InvalidData, match=r"data\[1\]"):
        read(tokenizer, [CHAT, 5], "cross_entropy")


def test_chats_have_no_logprobs_for_policy_losses(tokenizer):
    with pytest.raises(InvalidData, match="logprobs, which ppo needs"):
        read(tokenizer, [CHAT], "ppo")


def test_text_is_a_turn_of_a_user_unless_it_is_raw(tokenizer):
    turn = prompt_tokens(tokenizer, [Message(role="user", content="Hi there")], raw=False)

    assert prompt_tokens(tokenizer, "Hi there", raw=False) == turn
    assert tokenizer.decode(prompt_tokens(tokenizer, "Hi there", raw=True)) == "Hi there"
    assert prompt_tokens(tokenizer, [5, 6], raw=False) == [5, 6]


def test_without_a_template_text_stays_bare(model):
    plain = load_tokenizer(str(model))
    plain.chat_template = None

    assert plain.decode(prompt_tokens(plain, "Hi there", raw=False)) == "Hi there"


@pytest.mark.parametrize("prompt", ["", [], "a\ud800"])
def test_an_empty_or_broken_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(InvalidData):
        prompt_tokens(tokenizer, prompt, raw=True)


@pytest.mark.parametrize(
    ("stop", "tokens", "strings"),
    [
        (None, None, ()),
        ("END", None, ("END",)),
        (["a", "b"], None, ("a", "b")),
        ([7], (7,), ()),
        ([], (), ()),
    ],
)
def test_stop_is_strings_or_tokens_or_nothing_at_all(stop, tokens, strings):
    sample = sample_of(None, [1, 2], SamplingBody(stop=stop))

    assert (sample.stop_tokens, sample.stop_strings) == (tokens, strings)


def test_a_sample_has_one_prompt_or_a_list_of_them():
    assert prompts_of(SampleBody(prompt="Hi")) == ["Hi"]
    assert prompts_of(SampleBody(prompts=["Hi", [1]])) == ["Hi", [1]]
    for body in (SampleBody(), SampleBody(prompt="Hi", prompts=["Hi"])):
        with pytest.raises(InvalidRequest):
            prompts_of(body)


def test_every_loss_is_listed_with_its_settings():
    listed = {each["name"]: each for each in losses_facts()}

    assert set(listed) == set(LOSS_SETTINGS) == set(LossName.__args__)
    assert listed["ppo"]["settings"] == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert {"target_tokens", "logprobs", "advantages"} <= set(listed["importance_sampling"]["inputs"])


def chat_of(answers: int, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for _ in range(answers) for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [(chat_of(513, "a"), "1026 messages"), (chat_of(100, "x" * 2000), "stand before the answers")],
)
def test_a_chat_that_would_be_read_again_for_too_many_answers_is_refused(
    tokenizer: ChatTokenizer, row: list[dict[str, str]], reason: str
):
    with pytest.raises(InvalidData, match=reason):
        read(tokenizer, [row], "cross_entropy")


def test_a_long_chat_with_one_answer_is_a_row(tokenizer: ChatTokenizer):
    row = [{"role": "user", "content": "x " * 50_000}, {"role": "assistant", "content": "yes"}]

    assert read(tokenizer, [row], "cross_entropy").lengths.tolist() != []


def test_a_prompt_has_no_more_messages_than_a_row(tokenizer: ChatTokenizer):
    turns = [Message(role="user", content="a")] * 1025

    with pytest.raises(InvalidData, match="1025 messages"):
        prompt_tokens(tokenizer, turns, raw=False)


@pytest.mark.parametrize(
    "row",
    [
        {**SAMPLED, "prompt_tokens": [{"role": "user", "content": "a"}] * 1025},
        {"prompt": "x" * (2**22 + 1), "completion": "y"},
        [{"role": "user", "content": "x" * 2**21}] * 3 + [{"role": "assistant", "content": "y"}],
    ],
)
def test_texts_longer_than_any_model_reads_are_refused(tokenizer: ChatTokenizer, row: object):
    with pytest.raises(InvalidData, match="at most"):
        read(tokenizer, [row], "ppo")
