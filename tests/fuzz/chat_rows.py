"""Training files: rows of all three forms, damaged as values, as JSON and as bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from loractl.bus.errors import InvalidData
from loractl.bus.messages import LossName
from loractl.client.rows import BadRows, ChatRow, SampledRow, read_rows
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import Play, Subject

_ROWS: tuple[dict[str, Any], ...] = (
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "ahoy \N{ANCHOR}"},
        ]
    },
    {"prompt": "hello", "completion": "ahoy"},
    {"prompt_tokens": [1, 2], "tokens": [3, 4], "logprobs": [-0.5, -1.0], "advantages": [1, -1.5]},
    {"prompt_tokens": [1], "tokens": [3], "logprobs": [-0.5], "advantage": 2},
)
_SPICE = (
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\n",
    b"\r\n",
    b"\x00",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b'"',
    b"[" * 3000,
)
_LOSSES: tuple[LossName, ...] = get_args(LossName)
# A reason for each bad row is kept and shown.
_LONGEST_REASON = 500


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    file = directory / "rows.jsonl"

    def play(source: Source) -> None:
        file.write_bytes(_text(source))
        _read(file, source.choice(_LOSSES))

    yield play


CHAT_ROWS = Subject(name="rows", share=60, open=_open)


def _text(source: Source) -> bytes:
    lines = [_row(source) for _ in range(source.randint(1, 4))]
    text = source.choice((b"\n", b"\n", b"\r\n", b"\n\n", b" ")).join(lines)
    return source.damaged(text, _SPICE) if source.one_in(2) else text


def _row(source: Source) -> bytes:
    row = source.choice(_ROWS)
    if source.one_in(5):
        row = row | source.choice(_ROWS)
    return source.json_text(source.changed(row))


def _read(file: Path, loss: LossName) -> None:
    try:
        rows = read_rows(file, loss)
    except BadRows as error:
        check_told(error)
        for row in error.rows:
            check_told(InvalidData(row.reason), longest=_LONGEST_REASON)
        return
    except InvalidData as error:
        check_told(error)
        return
    assert rows
    for row in rows:
        _check(row)


def _check(row: ChatRow | SampledRow) -> None:
    """What is taken can be used."""
    if isinstance(row, ChatRow):
        assert row.turns
        for turn in row.turns:
            turn.content.encode()
    else:
        assert len(row.tokens) == len(row.logprobs) == len(row.advantages) > 0
        assert all(isinstance(token, int) for token in (*row.prompt_tokens, *row.tokens))
