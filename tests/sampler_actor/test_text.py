"""Text that grows token by token, with a real byte-level tokenizer."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from loractl.bus.config import Config, ModelConfig
from loractl.bus.errors import InvalidConfig
from loractl.sampler_actor.facts import read_facts
from loractl.sampler_actor.text import TextStream, Tokenizer, load_tokenizer
from loractl.tests.sampler_actor.tiny import CONTEXT, END_TOKEN, VOCAB
from tokenizers import Tokenizer as Tokenizing
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_model))


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_a_character_of_several_tokens_appears_whole(tokenizer):
    tokens = tokenizer.encode("a 🐙 b")
    assert len(tokens) > 5, "the octopus must be several tokens for this test"

    shown = pieces(tokenizer, tokens)

    assert "".join(shown) == "a 🐙 b"
    assert "🐙" in shown
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)


def test_a_character_that_stays_unfinished_is_shown_at_the_end(tokenizer):
    first_byte = tokenizer.encode("🐙")[0]

    assert pieces(tokenizer, [first_byte]) == ["", "\N{REPLACEMENT CHARACTER}"]


def test_the_end_token_is_not_text(tokenizer):
    assert "".join(pieces(tokenizer, [*tokenizer.encode("so"), END_TOKEN])) == "so"


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_out_as_it_went_in(tokenizer, text):
    tokens = tokenizer.encode(text)
    whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    assert "".join(pieces(tokenizer, tokens)) == whole


@given(st.lists(st.integers(0, VOCAB - 1), max_size=120))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tokens_give_the_text_of_the_whole(tokenizer, tokens):
    whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    assert "".join(pieces(tokenizer, tokens)) == whole


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """As of Llama 2: what is not in the vocabulary is a token per byte."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    tokenizing = Tokenizing(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizing.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizing, unk_token="<unk>")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=100))
@example("🐙é日" * 30)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_of_bytes_comes_out_as_it_went_in(byte_fallback, text):
    assert "".join(pieces(byte_fallback, [byte + 1 for byte in text.encode()])) == text


def test_what_never_becomes_text_is_shown_in_the_end_and_costs_a_bounded_window(byte_fallback):
    shown = pieces(byte_fallback, [0x81] * 1000)

    assert "".join(shown) == "\N{REPLACEMENT CHARACTER}" * 1000
    assert any(shown[:200])


def test_a_models_facts_stand_in_its_directory(tiny_model):
    facts = read_facts(Config(model=ModelConfig(path=str(tiny_model), max_sequence_tokens=10_000)))

    assert (facts.vocab_size, facts.context_tokens, facts.end_tokens) == (VOCAB, CONTEXT, (END_TOKEN,))


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match=r"model\.path"):
        read_facts(Config(model=ModelConfig(path=str(tmp_path))))
    with pytest.raises(InvalidConfig, match="tokenizer"):
        load_tokenizer(str(tmp_path))
