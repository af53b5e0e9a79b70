"""Chat rows to tokens and weights: the same rules for the command line and for HTTP. Pure.

Only what the assistant says is trained: its content and the token that ends its turn. Templates
need no `{% generation %}` marks, because the text of the whole chat is compared with the prompt
that the model reads before each answer:

- usually that prompt begins the whole text, and so does the text up to the answer's end: the answer
  lies between the two;
- some templates write earlier turns differently once others follow (Qwen3 removes their thoughts).
  Then the chat is put together turn by turn: each prompt as the model reads it, then the answer as
  it was written and the template's end of turn.

The text is tokenized as one. Where a token would reach over the border between prompt and answer,
the parts are tokenized each for itself, as they are when the model answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from .errors import InvalidData

Messages = Sequence[Mapping[str, str]]


class ChatTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> object: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """A sequence and, for each of its tokens, 1.0 where the model shall learn to say it, else 0.0."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


class _Piece(NamedTuple):
    text: str
    trained: bool


def render_chat(tokenizer: ChatTokenizer, messages: Messages) -> Rendered:
    """Tokens of a chat up to the last thing the assistant says, with weight on all that it says.

    messages: `{"role", "content"}` each; roles are the template's business, but "assistant" is
    what is trained. Where the template does not mark the end of a chat, the end token is added.

    Raises:
        InvalidData: a message without role or text, no assistant turn, an empty one, a chat that
            the template refuses, or a tokenizer without a template.
    """
    chat = _up_to_last_answer(_checked(messages))
    pieces = _pieces_of_whole(tokenizer, chat) or _pieces_turn_by_turn(tokenizer, chat)
    spoken = [piece for piece in pieces if piece.trained][-1]
    unmarked = spoken.text.rstrip().endswith(chat[-1]["content"].rstrip())
    return _tokenized(tokenizer, pieces, end=unmarked)


def render_completion(tokenizer: ChatTokenizer, prompt: str, completion: str) -> Rendered:
    """Tokens of plain text without any template, with weight on the completion and the end token.

    For models that have no chat template; with one, a prompt and its completion are two turns.

    Raises:
        InvalidData: the prompt or the completion is empty.
    """
    if not prompt or not completion:
        raise InvalidData(f"the {'completion' if prompt else 'prompt'} is empty")
    before = tokenizer.encode(prompt, add_special_tokens=True)
    after = [*tokenizer.encode(completion, add_special_tokens=False), *_end(tokenizer)]
    return Rendered((*before, *after), (0.0,) * len(before) + (1.0,) * len(after))


def render_prompt(tokenizer: ChatTokenizer, messages: Messages) -> tuple[int, ...]:
    """Tokens of a chat that the assistant is to go on with.

    Raises:
        InvalidData: as `render_chat`; an assistant turn is not needed.
    """
    text = _render(tokenizer, _checked(messages, answered=False), prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _checked(messages: Messages, *, answered: bool = True) -> list[dict[str, str]]:
    if not messages:
        raise InvalidData("the chat has no messages")
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise InvalidData(f"message {number} has no role")
        if not isinstance(content, str):
            raise InvalidData(f"message {number} ({role}) has no text as its content")
        if answered and role == "assistant" and not content.strip():
            raise InvalidData(f"message {number}: the assistant says nothing")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _up_to_last_answer(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    answers = _answers(chat)
    if not answers:
        raise InvalidData("no message has the role assistant: there is nothing to learn")
    return chat[: answers[-1] + 1]


def _answers(chat: list[dict[str, str]]) -> list[int]:
    return [index for index, message in enumerate(chat) if message["role"] == "assistant"]


def _pieces_of_whole(tokenizer: ChatTokenizer, chat: list[dict[str, str]]) -> list[_Piece]:
    """The whole text cut at the borders of each answer; empty where the template moves them."""
    whole = _render(tokenizer, chat)
    pieces, done = [], 0
    for index in _answers(chat):
        prompt = _render(tokenizer, chat[:index], prompt=True)
        so_far = _render(tokenizer, chat[: index + 1])
        if not (whole.startswith(so_far) and so_far.startswith(prompt)) or len(prompt) < done:
            return []
        said = _said(so_far[len(prompt) :], chat[index]["content"])
        pieces += [_Piece(whole[done : len(prompt)], False), _Piece(said, True)]
        done = len(prompt) + len(said)
    return pieces


def _pieces_turn_by_turn(tokenizer: ChatTokenizer, chat: list[dict[str, str]]) -> list[_Piece]:
    """Each prompt as the model reads it, from the end of the answer before, then the answer."""
    pieces: list[_Piece] = []
    end = ""
    for index in _answers(chat):
        prompt = _render(tokenizer, chat[:index], prompt=True)
        if pieces:
            prompt = prompt[_behind_last_answer(prompt, chat[:index]) :]
            if not prompt.startswith(end):
                raise InvalidData("the chat template ends turns in several ways: give one answer per row")
        so_far = _render(tokenizer, chat[: index + 1])
        pieces.append(_Piece(prompt.removeprefix(end), False))
        end = _end_of_turn(so_far[_behind_last_answer(so_far, chat[: index + 1]) :])
        pieces.append(_Piece(chat[index]["content"].strip() + end, True))
    return pieces


def _said(text: str, content: str) -> str:
    """Of the text behind a prompt, what belongs to the answer: all but the space behind its end."""
    found = text.find(content.strip())
    behind = found + len(content.strip()) if found >= 0 else 0
    return text[:behind] + _end_of_turn(text[behind:])


def _end_of_turn(text: str) -> str:
    return text.rstrip() or text


def _behind_last_answer(text: str, chat: list[dict[str, str]]) -> int:
    """Where the last answer ends in a rendering; found message by message, so that no quote misleads."""
    at = 0
    for message in chat[: _answers(chat)[-1] + 1]:
        content = message["content"].strip()
        found = text.find(content, at)
        if found >= 0:
            at = found + len(content)
        elif message["role"] == "assistant":
            raise InvalidData("the chat template rewrites earlier answers: give one answer per row")
    return at


def _tokenized(tokenizer: ChatTokenizer, pieces: Sequence[_Piece], *, end: bool) -> Rendered:
    """Tokens of the pieces as one text, or of each for itself where a token would cross a border."""
    text = "".join(piece.text for piece in pieces)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    borders = [0]
    for length in accumulate(len(piece.text) for piece in pieces[:-1]):
        before = tokenizer.encode(text[:length], add_special_tokens=False)
        if tokens[: len(before)] != before:
            return _joined(tokenizer, pieces, end=end)
        borders.append(len(before))
    parts = [tokens[start:stop] for start, stop in pairwise([*borders, len(tokens)])]
    return _weighted(tokenizer, pieces, parts, end=end)


def _joined(tokenizer: ChatTokenizer, pieces: Sequence[_Piece], *, end: bool) -> Rendered:
    parts = [tokenizer.encode(piece.text, add_special_tokens=False) for piece in pieces]
    return _weighted(tokenizer, pieces, parts, end=end)


def _weighted(
    tokenizer: ChatTokenizer, pieces: Sequence[_Piece], parts: Sequence[list[int]], *, end: bool
) -> Rendered:
    last = _end(tokenizer) if end else []
    tokens = [token for part in parts for token in part] + last
    weights = [float(piece.trained) for piece, part in zip(pieces, parts, strict=True) for _ in part]
    return Rendered(tuple(tokens), (*weights, *[1.0] * len(last)))


def _end(tokenizer: ChatTokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _render(tokenizer: ChatTokenizer, chat: list[dict[str, str]], *, prompt: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
    except _template_errors() as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise InvalidData(f"the chat template refuses this chat: {reason[0]}") from error


def _template_errors() -> tuple[type[Exception], ...]:
    """What rendering raises; jinja2 is there exactly when a tokenizer with a template is."""
    try:
        from jinja2 import TemplateError
    except ImportError:
        return (ValueError, TypeError)
    return (ValueError, TypeError, TemplateError)
