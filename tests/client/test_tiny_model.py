"""The tiny model: the same bytes from the same seed, and what transformers, vLLM and a chat need of it."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from loractl.bus.chat import render_chat, render_prompt
from loractl.bus.errors import InvalidRequest
from loractl.client.tiny_model import VOCABULARY, TinyModel, make_tiny_model
from loractl.client.tiny_text import plain_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

# Head sizes that vLLM's CPU build has attention kernels for.
VLLM_HEAD_DIMS = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Trained for a few steps only: enough to see that training is the same each time."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", steps=4)


@pytest.fixture(scope="module")
def tokenizer(tiny: TinyModel):
    return AutoTokenizer.from_pretrained(tiny.directory)


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(tiny, tmp_path):
    torch.rand(3)

    again = make_tiny_model(tmp_path / "again", steps=4)

    assert digests(again.directory) == digests(tiny.directory)
    assert again.loss == tiny.loss
    assert set(digests(again.directory)) == FILES


def test_another_seed_gives_another_model_with_the_same_tokenizer(tmp_path):
    first = digests(make_tiny_model(tmp_path / "a", steps=0).directory)
    second = digests(make_tiny_model(tmp_path / "b", steps=0, seed=1).directory)

    changed = {name for name in FILES if first[name] != second[name]}

    assert changed == {"model.safetensors"}


def test_making_a_model_leaves_the_callers_random_numbers_and_threads_alone(tmp_path):
    torch.manual_seed(5)
    threads, expected = torch.get_num_threads(), torch.random.get_rng_state()

    make_tiny_model(tmp_path / "model", steps=1)

    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.get_num_threads() == threads


def test_training_is_told_step_by_step_and_lowers_the_loss(tmp_path):
    told: list[tuple[int, int]] = []

    made = make_tiny_model(tmp_path / "model", steps=12, on_step=lambda done, of: told.append((done, of)))

    assert told == [(n, 12) for n in range(1, 13)]
    assert made.loss < 6.0  # a uniform guess has log(1024) = 6.9


def test_transformers_loads_it_and_it_has_the_shape_it_says(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny.directory)

    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == tiny.parameters
    assert model.generation_config.eos_token_id == model.config.eos_token_id


def test_vllm_and_two_tensor_parallel_ranks_can_take_its_shape(tiny):
    config = json.loads((tiny.directory / "config.json").read_text())

    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] in VLLM_HEAD_DIMS
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    for divided in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        assert config[divided] % 2 == 0


def test_the_template_writes_chatml(tokenizer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_is_trained_of_a_chat_is_the_answer_and_its_end(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]

    rendered = render_chat(tokenizer, chat)

    trained = [t for t, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert tokenizer.decode(trained) == "Good day.<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert render_prompt(tokenizer, chat[:1]) == rendered.tokens[: -len(trained)]


@pytest.mark.parametrize("text", ["Grüße, 東京 🦊", "SELECT * FROM t;\n\n", "  two  spaces", "\x00\x7f"])
def test_every_text_survives_the_tokenizer(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)

    assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == text
    assert max(tokens) < VOCABULARY


def test_every_question_has_one_plain_answer():
    pairs = plain_pairs()

    assert len({question for question, _ in pairs}) == len(pairs)
    assert all(question and answer.endswith(".") for question, answer in pairs)


def test_a_directory_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InvalidRequest, match="is not empty"):
        make_tiny_model(tmp_path, steps=0)

    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InvalidRequest, match="is not a directory"):
        make_tiny_model(tmp_path / "file", steps=0)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"steps": -1}])
def test_numbers_below_zero_are_refused(tmp_path, wrong):
    with pytest.raises(InvalidRequest, match="negative"):
        make_tiny_model(tmp_path / "model", **wrong)
