"""Training files: reads JSON lines into rows, and says of every bad row where it is and what is wrong.

Three forms of a row:
- `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`;
- `{"prompt": "…", "completion": "…"}`, short for one user turn and one assistant turn, or plain text
  where the model has no chat template;
- `{"prompt_tokens": […], "tokens": […], "logprobs": […], "advantages": […]}`, for the losses that
  learn from sampled text, all but cross_entropy: logprobs and advantages belong to `tokens`, one each; `"advantage": x`
  stands for the same advantage everywhere. `loractl sample --json` prints the first three.
What rows become for a model is left to `datums`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bus.errors import InvalidData
from ..bus.messages import LossName

ROLES = ("system", "user", "assistant", "tool")
_SAMPLED_KEYS = {"prompt_tokens", "tokens", "logprobs", "advantages"}
_FLOAT32_END = 3.4e38  # also false for NaN


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRow:
    """is_completion: written as prompt and completion, which a model without chat template takes, too."""

    line: int
    turns: tuple[Turn, ...]
    is_completion: bool = False


@dataclass(frozen=True, slots=True)
class SampledRow:
    """What a model sampled after a prompt, with its logprobs then and how good each token was."""

    line: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]


Row = ChatRow | SampledRow


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: its line in the file, counted from 1, and why."""

    line: int
    reason: str


class BadRows(InvalidData):
    """Some rows of a file cannot be used; `rows` says which and why."""

    def __init__(self, file: Path, rows: Sequence[BadRow], of: int) -> None:
        super().__init__(
            f"{len(rows)} of {of} rows of {file} cannot be used: mend or remove them; nothing was trained"
        )
        self.file = file
        self.rows = tuple(rows)


def read_rows(file: Path, loss: LossName) -> list[Row]:
    """Read a whole file.

    Raises:
        BadRows: some rows cannot be used.
        InvalidData: the file cannot be read, or holds no row at all.
    """
    try:
        # With or without the mark that some editors write first.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidData(f"cannot read {file}: {reason}") from error
    good, bad = parse_rows(lines, loss)
    if not good and not bad:
        raise InvalidData(f"{file} is empty: write one JSON object a line, such as {_example(loss)}")
    if bad:
        raise BadRows(file, bad, of=len(good) + len(bad))
    return good


def parse_rows(lines: Iterable[str], loss: LossName) -> tuple[list[Row], list[BadRow]]:
    """Sort lines into rows that the loss can use and rows that it cannot. Blank lines count for nothing."""
    good: list[Row] = []
    bad: list[BadRow] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            good.append(_row(number, text, loss))
        except InvalidData as error:
            bad.append(BadRow(number, error.message))
    return good, bad


def _row(line: int, text: str, loss: LossName) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidData(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData("not usable JSON: a number is too long, or it is nested too deeply") from error
    if not isinstance(value, dict):
        raise InvalidData(f"a row is a JSON object, this is {_kind(value)}")
    if loss == "cross_entropy":
        return _chat_row(line, value)
    return _sampled_row(line, value, loss)


def _chat_row(line: int, value: Mapping[str, object]) -> ChatRow:
    if "messages" in value:
        _refuse_other_keys(value, {"messages"})
        turns = _turns(value["messages"])
    elif "prompt" in value or "completion" in value:
        _refuse_other_keys(value, {"prompt", "completion"})
        turns = (
            Turn("user", _text(value, "prompt")),
            Turn("assistant", _text(value, "completion")),
        )
    elif set(value) & _SAMPLED_KEYS:
        raise InvalidData(
            "a row of sampled tokens: train it with --loss importance_sampling, ppo or the like"
        )
    else:
        raise InvalidData(
            f"neither 'messages' nor 'prompt' and 'completion': write {_example('cross_entropy')}"
        )
    if not any(turn.role == "assistant" and turn.content for turn in turns):
        raise InvalidData("no assistant turn with text, so there is nothing to train on")
    return ChatRow(line, turns, is_completion="messages" not in value)


def _turns(value: object) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise InvalidData(f"'messages' is {_kind(value)}: give a list of at least one message")
    if not value:
        raise InvalidData("'messages' is empty: give at least one message")
    turns = []
    for number, message in enumerate(value, start=1):
        try:
            if not isinstance(message, dict):
                raise InvalidData(f"is {_kind(message)}, not an object with 'role' and 'content'")
            _refuse_other_keys(message, {"role", "content"})
            role = _text(message, "role")
            if role not in ROLES:
                raise InvalidData(f"has the role {role[:40]!r}: use one of {', '.join(ROLES)}")
            turns.append(Turn(role, _text(message, "content")))
        except InvalidData as error:
            raise InvalidData(f"message {number}: {error.message}") from error
    return tuple(turns)


def _sampled_row(line: int, value: Mapping[str, object], loss: LossName) -> SampledRow:
    if "messages" in value or "completion" in value:
        raise InvalidData(
            f"a chat row has no logprobs and advantages, which {loss} needs: train it with --loss cross_entropy"
        )
    advantages_key = "advantage" if "advantage" in value else "advantages"
    _refuse_other_keys(value, {"prompt_tokens", "tokens", "logprobs", advantages_key})
    tokens = _token_ids(value, "tokens")
    if not tokens:
        raise InvalidData("'tokens' is empty, so there is nothing to train on")
    if advantages_key == "advantage":
        advantages = _floats({"advantage": [value["advantage"]]}, "advantage") * len(tokens)
    else:
        advantages = _floats(value, "advantages")
    row = SampledRow(line, _token_ids(value, "prompt_tokens"), tokens, _floats(value, "logprobs"), advantages)
    if not row.prompt_tokens:
        raise InvalidData("'prompt_tokens' is empty: the first token needs something before it")
    for name, given in (("logprobs", row.logprobs), ("advantages", row.advantages)):
        if len(given) != len(tokens):
            raise InvalidData(f"{len(given)} {name} for {len(tokens)} tokens: give one for each")
    return row


def _token_ids(value: Mapping[str, object], key: str) -> tuple[int, ...]:
    items = _items(value, key)
    tokens = tuple(
        item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0
    )
    if len(tokens) != len(items):
        raise InvalidData(f"'{key}' must hold token ids, which are whole numbers from 0")
    return tokens


def _floats(value: Mapping[str, object], key: str) -> tuple[float, ...]:
    items = _items(value, key)
    plain = [i for i in items if isinstance(i, int | float) and not isinstance(i, bool)]
    numbers = tuple(float(i) for i in plain if abs(i) < _FLOAT32_END)
    if len(numbers) != len(items):
        raise InvalidData(f"'{key}' must hold finite numbers")
    return numbers


def _items(value: Mapping[str, object], key: str) -> list[object]:
    if key not in value:
        raise InvalidData(f"no '{key}'")
    items = value[key]
    if not isinstance(items, list):
        raise InvalidData(f"'{key}' is {_kind(items)}, not a list")
    return items


def _text(value: Mapping[str, object], key: str) -> str:
    if key not in value:
        raise InvalidData(f"no '{key}'")
    text = value[key]
    if not isinstance(text, str):
        raise InvalidData(f"'{key}' is {_kind(text)}, not a string")
    check_text(text, f"'{key}'")
    return text


def check_text(text: str, what: str) -> None:
    """JSON escapes and stray bytes on a command line can make strings that no tokenizer takes.

    Raises:
        InvalidData: it holds half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidData(f"{what} is not Unicode text at character {error.start + 1}") from error


def _refuse_other_keys(value: Mapping[str, object], known: set[str]) -> None:
    """A key that would be ignored might be one that its writer counts on."""
    if others := sorted(set(value) - known):
        raise InvalidData(f"'{others[0][:40]}' is not used here: remove it ({', '.join(sorted(known))} are)")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _example(loss: LossName) -> str:
    if loss == "cross_entropy":
        return '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
    return '{"prompt_tokens": […], "tokens": […], "logprobs": […], "advantages": […]}'
