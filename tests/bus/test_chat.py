"""Chat rows: what the assistant says is trained, and the tokens are those that sampling would see."""

from collections.abc import Callable

import pytest
from loractl.bus.chat import Rendered, render_chat, render_completion, render_prompt
from loractl.bus.errors import InvalidData
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# As Qwen3 does: the last answer is written with (empty) thoughts, earlier ones without.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
PICKY = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

TEXT = ["Hello there, how are you today?", "the quick brown fox", "assistant user system", "\n\n: hi\n"]
Make = Callable[[str | None], PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def tokenizer() -> Make:
    """A byte-level BPE, as Llama 3, Qwen and SmolLM have, with the given template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT * 20, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )

    def make(template: str | None) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token="<|endoftext|>", chat_template=template
        )

    return make


def chat(*turns: str) -> list[dict[str, str]]:
    """user, assistant, user, … ; a turn that begins with `system ` is one of the system."""
    roles = ["user", "assistant"]
    messages = []
    for turn in turns:
        if turn.startswith("system "):
            messages.append({"role": "system", "content": turn.removeprefix("system ")})
        else:
            messages.append({"role": roles[0], "content": turn})
            roles.reverse()
    return messages


def trained_text(tokenizer: PreTrainedTokenizerFast, rendered: Rendered) -> list[str]:
    """The runs of tokens that carry weight, as text."""
    runs: list[list[int]] = []
    before = 0.0
    for token, weight in zip(rendered.tokens, rendered.weights, strict=True):
        if weight and not before:
            runs.append([])
        if weight:
            runs[-1].append(token)
        before = weight
    return [tokenizer.decode(run) for run in runs]


CONVERSATION = chat("system be kind", "hi", "Hello there", "how are you", "the quick fox")


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>")], ids=["chatml", "llama3"]
)
def test_every_answer_and_the_end_of_its_turn_are_trained(tokenizer: Make, template: str, end: str) -> None:
    real = tokenizer(template)

    rendered = render_chat(real, CONVERSATION)

    assert trained_text(real, rendered) == [f"Hello there{end}", f"the quick fox{end}"]
    whole = real.apply_chat_template(CONVERSATION, tokenize=False)
    assert real.decode(rendered.tokens) == whole.rstrip()


@pytest.mark.parametrize("template", [CHATML, LLAMA3, THINKING], ids=["chatml", "llama3", "thinking"])
def test_an_answer_follows_exactly_the_prompt_that_sampling_sends(tokenizer: Make, template: str) -> None:
    real = tokenizer(template)

    rendered = render_chat(real, CONVERSATION)
    prompt = render_prompt(real, CONVERSATION[:-1])

    assert rendered.tokens[: len(prompt)] == prompt
    assert rendered.weights[len(prompt)] == 1.0
    assert rendered.weights[len(prompt) - 1] == 0.0


def test_a_template_that_rewrites_earlier_turns_is_rendered_turn_by_turn(tokenizer: Make) -> None:
    real = tokenizer(THINKING)

    rendered = render_chat(real, CONVERSATION)

    assert trained_text(real, rendered) == ["Hello there<|im_end|>", "the quick fox<|im_end|>"]


def test_a_single_answer_keeps_what_the_template_puts_before_it(tokenizer: Make) -> None:
    real = tokenizer(THINKING)

    rendered = render_chat(real, chat("hi", "Hello there"))

    assert trained_text(real, rendered) == ["<think>\n\n</think>\n\nHello there<|im_end|>"]


def test_a_template_without_an_end_gets_the_end_token(tokenizer: Make) -> None:
    real = tokenizer(BARE)

    rendered = render_chat(real, chat("hi", "Hello", "how", "fox"))

    assert trained_text(real, rendered) == [" Hello\n", " fox\n<|endoftext|>"]


def test_what_follows_the_last_answer_is_left_out(tokenizer: Make) -> None:
    real = tokenizer(CHATML)

    with_question = render_chat(real, chat("hi", "Hello", "and then?"))

    assert with_question == render_chat(real, chat("hi", "Hello"))


def test_an_answer_that_quotes_the_question_is_found(tokenizer: Make) -> None:
    real = tokenizer(THINKING)

    rendered = render_chat(real, chat("fox", "fox", "fox", "fox"))

    assert trained_text(real, rendered) == ["fox<|im_end|>", "fox<|im_end|>"]


def test_tokens_never_cross_from_a_prompt_into_its_answer(tokenizer: Make) -> None:
    # "Hello" + " there" would be merged over the border if the text were tokenized as one.
    merging = "{% for m in messages %}{{ m.content }}{% endfor %}"
    real = tokenizer(merging)

    rendered = render_chat(real, chat("the qui", "ck brown"))

    prompt = real.encode("the qui", add_special_tokens=False)
    assert list(rendered.tokens[: len(prompt)]) == prompt
    assert trained_text(real, rendered) == ["ck brown<|endoftext|>"]


@pytest.mark.parametrize(
    ("template", "messages", "problem"),
    [
        (CHATML, [], "no messages"),
        (CHATML, chat("hi"), "no message has the role assistant"),
        (CHATML, chat("hi", "  "), "message 2: the assistant says nothing"),
        (CHATML, [{"content": "hi"}], "message 1 has no role"),
        (CHATML, [{"role": "user", "content": ["hi"]}], "message 1 \\(user\\) has no text"),
        (CHATML, [{"role": "user"}], "message 1 \\(user\\) has no text"),
        (PICKY, chat("system x", "hi", "Hello"), "refuses this chat: no system here"),
        (None, chat("hi", "Hello"), "refuses this chat: .*chat_template"),
    ],
)
def test_rows_that_cannot_be_used_say_why(
    tokenizer: Make, template: str | None, messages: list[dict[str, str]], problem: str
) -> None:
    with pytest.raises(InvalidData, match=problem) as raised:
        render_chat(tokenizer(template), messages)

    assert "\n" not in raised.value.message


def test_plain_text_needs_no_template(tokenizer: Make) -> None:
    real = tokenizer(None)

    rendered = render_completion(real, "the quick", " brown fox")

    assert trained_text(real, rendered) == [" brown fox<|endoftext|>"]
    assert real.decode(rendered.tokens) == "the quick brown fox<|endoftext|>"


@pytest.mark.parametrize(("prompt", "completion"), [("", "x"), ("x", "")])
def test_plain_text_needs_both_parts(tokenizer: Make, prompt: str, completion: str) -> None:
    with pytest.raises(InvalidData, match="is empty"):
        render_completion(tokenizer(None), prompt, completion)
