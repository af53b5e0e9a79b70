"""Rows and prompts as tokens of a real tokenizer and its chat template."""

from dataclasses import replace

import pytest
from loractl.bus.errors import InvalidConfig, InvalidData
from loractl.client.rows import ChatRow, SampledRow, Turn
from loractl.client.text import ModelText, load_tokenizer


def chat(line: int, answer: str) -> ChatRow:
    return ChatRow(line, (Turn("user", "What is the sea?"), Turn("assistant", answer)))


def test_only_the_answer_and_its_end_are_trained(text, model_details):
    (datum,), bad, cut = text.datums([chat(1, "Water.")], None)

    trained = datum.targets[datum.weights > 0].tolist()
    tokenizer = load_tokenizer(model_details.name, model_details.path)
    assert tokenizer.decode(trained) == "Water.<|im_end|>"
    assert (bad, cut) == ([], 0)


def test_a_model_without_a_template_takes_completions_and_no_chats(text, model_details):
    tokenizer = load_tokenizer(model_details.name, model_details.path)
    tokenizer.chat_template = None
    plain = ModelText(model_details, tokenizer)
    row = chat(1, " Water.")

    (datum,), bad, _ = plain.datums([replace(row, is_completion=True), row], None)

    assert tokenizer.decode(datum.targets[datum.weights > 0]).startswith(" Water.")
    assert tokenizer.decode(datum.tokens).startswith("What is the sea? Water")
    assert len(bad) == 1
    assert "chat template" in bad[0].reason


def test_a_training_row_begins_with_the_prompt_that_sampling_sends(text):
    (datum,), _, _ = text.datums([chat(1, "Water.")], None)

    prompt = text.prompt("What is the sea?")

    assert tuple(datum.tokens[: len(prompt)]) == prompt
    assert datum.weights[: len(prompt) - 1].sum() == 0
    assert datum.weights[len(prompt) - 1] == 1


def test_a_raw_prompt_has_no_template(text):
    assert len(text.prompt("What is the sea?", raw=True)) < len(text.prompt("What is the sea?"))
    with pytest.raises(InvalidData, match="empty"):
        text.prompt("")


def test_a_prompt_of_stray_bytes_is_refused(text):
    with pytest.raises(InvalidData, match="the prompt is not Unicode text at character 2"):
        text.prompt("a\udcff")


def test_a_long_prompt_is_tokenized_without_a_word_from_the_library(text, caplog):
    assert len(text.prompt("word " * 3000)) > 3000
    assert "longer than the specified maximum" not in caplog.text


def test_a_row_that_is_too_long_is_refused_unless_it_may_be_cut(text):
    rows = [chat(1, "Water."), chat(2, "Water, " * 60)]

    kept, bad, _ = text.datums(rows, None)
    datums, none_bad, cut = text.datums(rows, 40)

    assert len(kept) == 1
    assert bad[0].line == 2
    assert "--max-length" in bad[0].reason
    assert [len(d.tokens) for d in datums][1] == 40
    assert (none_bad, cut) == ([], 1)


def test_a_cut_that_leaves_nothing_to_learn_is_refused(text):
    _, bad, _ = text.datums([chat(1, "Water.")], 3)

    assert "nothing to learn within the first 3" in bad[0].reason


def test_a_sampled_token_outside_the_vocabulary_is_refused(text, model_details):
    row = SampledRow(4, (1,), (model_details.vocab_size,), (-1.0,), (1.0,))

    _, bad, _ = text.datums([row], None)

    assert bad[0].line == 4
    assert "vocabulary" in bad[0].reason


def test_a_missing_tokenizer_is_one_clear_error(model_details, tmp_path):
    with pytest.raises(InvalidConfig, match="cannot read the tokenizer"):
        load_tokenizer(model_details.name, str(tmp_path))
