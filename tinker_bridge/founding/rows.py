"""Rows of training data: the forms they are written in. Pure.

    a chat            [{"role", "content"}, …] or {"messages": [the same]}; trained on what the assistant says
    a completion      {"prompt", "completion"}: two turns of a chat
    a sampled text    {"prompt_tokens" or "prompt", "tokens" or "target_tokens", "logprobs",
                      "advantages" or "advantage"}: what was sampled after a prompt, and how good it was
    positions         {"tokens", "target_tokens", and the loss's other inputs}: one of each a position
    Tinker's datum    {"model_input", "loss_fn_inputs"}

Legend: P = tokens of a prompt, S = sampled tokens, N = positions.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec

from ...bus.errors import InvalidData
from ..wire.json_forms import ModelInput, TensorData

_Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Role = Literal["system", "user", "assistant", "tool"]


# A chat's template and tokenizer take a second for so many characters, or a few.
_MOST_MESSAGES = 1024
_MOST_CHARACTERS = 2**22
_MOST_READ_CHARACTERS = 2**23


class _Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that would be ignored might be one that its writer counts on."""


class Turn(_Form, frozen=True):
    role: _Role
    content: str


class _Spoken(Protocol):
    """A turn, of rows or of prompts."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


class Chat(_Form, frozen=True):
    messages: tuple[Turn, ...]


class Completion(_Form, frozen=True):
    prompt: str
    completion: str


class Sampled(_Form, frozen=True):
    """prompt: [P] tokens, text for one turn of a user, or a chat. tokens, logprobs, advantages: [S]."""

    prompt: tuple[_Token | Turn, ...] | str
    tokens: tuple[_Token, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]


class Positions(_Form, frozen=True):
    """inputs [N] each, by the loss's names; target_tokens always among them."""

    tokens: tuple[_Token, ...]
    target_tokens: tuple[_Token, ...]
    weights: tuple[float, ...] | None = None
    mask: tuple[float, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    advantages: tuple[float, ...] | None = None
    sequence_ratio_mask: tuple[float, ...] | None = None


class TinkerDatum(_Form, frozen=True):
    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


Row = Chat | Completion | Sampled | Positions | TinkerDatum
RowT = TypeVar("RowT", bound=Row)


def row_of(value: object) -> Row:
    """
    Raises:
        InvalidData: in none of the forms.
    """
    if isinstance(value, list):
        return _converted({"messages": value}, Chat)
    if not isinstance(value, dict):
        raise InvalidData(f"a row is a chat or an object: {_FORMS}")
    if "messages" in value:
        return _converted(value, Chat)
    if "completion" in value:
        return _converted(value, Completion)
    if "model_input" in value:
        return _tinker(value)
    if "prompt_tokens" in value or "prompt" in value:
        return _sampled(value)
    if "tokens" in value and "target_tokens" in value:
        return _converted(value, Positions)
    raise InvalidData(f"the form of this row is not known: {_FORMS}")


def _sampled(value: Mapping[str, object]) -> Sampled:
    """The row with the names of its keys made one."""
    fields = dict(value)
    for name, also in (("prompt", "prompt_tokens"), ("tokens", "target_tokens")):
        if also in fields:
            if name in fields:
                raise InvalidData(f"give {name} or {also}, not both")
            fields[name] = fields.pop(also)
    if "advantage" in fields and "advantages" not in fields:
        tokens = fields.get("tokens")
        fields["advantages"] = [fields.pop("advantage")] * (len(tokens) if isinstance(tokens, list) else 1)
    row = _converted(fields, Sampled)
    if len({type(part) for part in row.prompt}) > 1:
        raise InvalidData("a prompt is tokens or a chat, not both")
    if not row.prompt or not row.tokens:
        raise InvalidData("neither the prompt nor the sampled tokens may be empty")
    for what, given in (("logprobs", row.logprobs), ("advantages", row.advantages)):
        if len(given) != len(row.tokens):
            raise InvalidData(f"{len(given)} {what} for {len(row.tokens)} tokens: give one for each")
    return row


def _tinker(value: Mapping[str, object]) -> TinkerDatum:
    # The parts of Tinker's datums read JSON themselves.
    try:
        return msgspec.json.decode(msgspec.json.encode(value), type=TinkerDatum)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as error:
        raise InvalidData(str(error)) from error


def _converted(value: object, form: type[RowT]) -> RowT:
    try:
        row = msgspec.convert(value, form)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InvalidData(str(error)) from error
    if isinstance(row, Chat):
        check_size(row.messages)
    for text in _texts(row):
        check_text(text)
    return row


def check_size(turns: Sequence[_Spoken], *, answered: bool = True) -> None:
    """What a chat costs: all before an answer is written and tokenized once more for each answer that is learnt.

    Raises:
        InvalidData: too many messages, or too long before too many answers.
    """
    if len(turns) > _MOST_MESSAGES:
        raise InvalidData(f"a chat of {len(turns)} messages: at most {_MOST_MESSAGES} are taken")
    characters = sum(len(turn.content) for turn in turns)
    if characters > _MOST_CHARACTERS:
        raise InvalidData(f"a chat of {characters:,} characters: at most {_MOST_CHARACTERS:,} are taken")
    if not answered:
        return
    before = accumulate(len(turn.content) for turn in turns)
    read = sum(length for length, turn in zip(before, turns, strict=True) if turn.role == "assistant")
    if read > _MOST_READ_CHARACTERS:
        raise InvalidData(
            f"{read:,} characters stand before the answers of this chat, those before several counted for each: "
            f"at most {_MOST_READ_CHARACTERS:,} are taken; make rows of fewer answers of it"
        )


def check_text(text: str) -> None:
    """Escapes in JSON can make strings that no tokenizer takes, and some are longer than any model reads.

    Raises:
        InvalidData: it is such a one.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InvalidData(f"a text of {len(text):,} characters: at most {_MOST_CHARACTERS:,} are taken")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(f"this is not Unicode text at character {error.start + 1}") from error


def _texts(row: Row) -> list[str]:
    match row:
        case Chat(messages=turns):
            return [turn.content for turn in turns]
        case Completion(prompt=prompt, completion=completion):
            return [prompt, completion]
        case Sampled(prompt=str(prompt)):
            return [prompt]
        case Sampled(prompt=prompt):
            return [part.content for part in prompt if isinstance(part, Turn)]
        case _:
            return []


_FORMS = (
    'write [{"role", "content"}, …], {"messages"}, {"prompt", "completion"}, {"prompt_tokens", "tokens", '
    '"logprobs", "advantages"}, {"tokens", "target_tokens", …} or {"model_input", "loss_fn_inputs"}'
)
