"""Rows and prompts as tokens of the base model. Pure, but for the tokenizer that is handed in.

A row that `loractl train` takes gives the same datum here as there.

Legend: N = positions of a datum, which are one fewer than the tokens of its sequence.
"""

from collections.abc import Mapping, Sequence
from typing import assert_never

import numpy as np

from ...bus.chat import ChatTokenizer, Rendered, render_chat, render_completion, render_prompt
from ...bus.errors import InvalidData
from ...bus.messages import Floats, LossName
from ..wire.json_forms import tensor_of, tokens_of
from ..wire.loss_inputs import LossInputs, packed
from ..wire.pass_request import Datum, shown
from ..wire.tensors import Tensor, tensor
from .bodies import Message, Prompt
from .rows import Chat, Completion, Positions, Row, Sampled, TinkerDatum, Turn, check_size, check_text, row_of

_FLOAT_INPUTS = ("weights", "mask", "logprobs", "advantages", "sequence_ratio_mask")


def datum_at(tokenizer: ChatTokenizer, index: int, value: object) -> Datum:
    """A row of a pass, which errors name by its place. Raises as `datum_of`."""
    try:
        return datum_of(tokenizer, row_of(value))
    except InvalidData as error:
        raise InvalidData(f"data[{index}]: {error.message}") from error


def inputs_of(datums: Sequence[Datum], loss: LossName) -> LossInputs:
    """All rows of a pass, packed as the trainer takes them.

    Raises:
        InvalidData, InvalidRequest, NotSupported: not with this loss.
    """
    inputs = packed(datums, loss)
    if inputs.ignored:
        raise InvalidData(
            f"{loss} does not use {', '.join(map(shown, inputs.ignored))}: choose another loss_fn"
        )
    return inputs


def datum_of(tokenizer: ChatTokenizer, row: Row) -> Datum:
    """Raises InvalidData, InvalidRequest, NotSupported: a row that cannot be used."""
    match row:
        case Chat(messages=turns):
            return _supervised(render_chat(tokenizer, _messages(turns)))
        case Completion(prompt=prompt, completion=completion):
            if not tokenizer.chat_template:
                return _supervised(render_completion(tokenizer, prompt, completion))
            chat = [Turn("user", prompt), Turn("assistant", completion)]
            return _supervised(render_chat(tokenizer, _messages(chat)))
        case Sampled():
            return _sampled(tokenizer, row)
        case Positions():
            return _positions(row)
        case TinkerDatum(model_input=model_input, loss_fn_inputs=inputs):
            tensors = {name: tensor_of(each, shown(name)) for name, each in inputs.items()}
            return Datum(tokens=tokens_of(model_input, "model_input"), inputs=tensors)
        case _:
            assert_never(row)


def prompt_tokens(tokenizer: ChatTokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """What the model reads before it answers. raw: text is not made a turn of a user.

    Raises:
        InvalidData: an empty prompt, or a chat that the model's template does not take.
    """
    if not prompt:
        raise InvalidData("the prompt is empty")
    if isinstance(prompt, str):
        return _text_tokens(tokenizer, prompt, raw=raw)
    turns = [part for part in prompt if isinstance(part, Message)]
    if not turns:
        return [part for part in prompt if isinstance(part, int)]
    check_size(turns, answered=False)
    for turn in turns:
        check_text(turn.content)
    return list(render_prompt(tokenizer, _messages(turns)))


def _text_tokens(tokenizer: ChatTokenizer, text: str, *, raw: bool) -> list[int]:
    check_text(text)
    if raw or not tokenizer.chat_template:
        return tokenizer.encode(text, add_special_tokens=True)
    return list(render_prompt(tokenizer, [{"role": "user", "content": text}]))


def _messages(turns: Sequence[Turn | Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _supervised(rendered: Rendered) -> Datum:
    """Learns to say the weighted tokens, each after all tokens before it."""
    if len(rendered.tokens) < 2:
        raise InvalidData("a row needs at least two tokens: one to read and one to say")
    return _datum(rendered.tokens[:-1], rendered.tokens[1:], {"weights": rendered.weights[1:]})


def _sampled(tokenizer: ChatTokenizer, row: Sampled) -> Datum:
    prompt = row.prompt
    if isinstance(prompt, str):
        before = _text_tokens(tokenizer, prompt, raw=False)
    elif turns := [part for part in prompt if isinstance(part, Turn)]:
        check_size(turns, answered=False)
        before = list(render_prompt(tokenizer, _messages(turns)))
    else:
        before = [part for part in prompt if isinstance(part, int)]
    sequence = (*before, *row.tokens)
    prompted = (0.0,) * (len(before) - 1)  # positions that predict the prompt itself
    inputs = {
        "mask": (*prompted, *(1.0,) * len(row.tokens)),
        "logprobs": (*prompted, *row.logprobs),
        "advantages": (*prompted, *row.advantages),
    }
    return _datum(sequence[:-1], sequence[1:], inputs)


def _positions(row: Positions) -> Datum:
    given = {name: getattr(row, name) for name in _FLOAT_INPUTS}
    return _datum(row.tokens, row.target_tokens, {n: v for n, v in given.items() if v is not None})


def _datum(tokens: Sequence[int], targets: Sequence[int], inputs: Mapping[str, Sequence[float]]) -> Datum:
    tensors: dict[str, Tensor] = {
        "target_tokens": tensor(np.array(targets, dtype=np.int64), None, what="target_tokens")
    }
    for name, values in inputs.items():
        tensors[name] = tensor(_floats(values), None, what=name)
    return Datum(tokens=np.array(tokens, dtype=np.int64), inputs=tensors)


def _floats(values: Sequence[float]) -> Floats:
    # What is too large for float32 becomes infinite, which the trainer refuses.
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)
