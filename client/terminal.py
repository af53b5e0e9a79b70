"""How loractl talks: data on stdout, everything else on stderr, every error as one line.

Exit codes: 0 done, 1 our side failed, 2 the caller's doing, 130 interrupted.
"""

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bus.errors import LoractlError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def data_console() -> Console:
    """stdout. Made anew for each use, because tests and pipes exchange the stream beneath."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def talk_console() -> Console:
    """stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def one_line(text: str) -> str:
    """Any text as one line: what an error's words may quote can hold line breaks."""
    return " ".join(text.split())


def error_text(message: str) -> Text:
    return Text.assemble(("error: ", "bold red"), one_line(message))


def exit_code(error: LoractlError) -> int:
    return EXIT_USER_ERROR if error.fault == "user" else EXIT_FAILED


def show_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """A table for eyes on a terminal; tab-separated lines, nothing cut off, for anything else."""
    if not console.is_terminal:
        for row in (columns, *rows):
            console.file.write("\t".join(str(cell) for cell in row) + "\n")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def show_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Names and values, one a line."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        console.print(Text.assemble((name.ljust(width), "bold"), value))


def show_json(console: Console, value: object) -> None:
    """One object on one line."""
    console.file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def size_text(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def count_text(count: int) -> str:
    """1234567 as 1.2M."""
    for end, unit in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if count < end:
            return f"{count}" if not unit else f"{count / (end / 1e3):.1f}{unit}"
    return f"{count / 1e9:.1f}B"


def counted(count: int, what: str) -> str:
    """1 thing, 2 things."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def duration_text(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours = whole // 3600
    return f"{hours} h {whole % 3600 // 60} min" if hours < 48 else f"{hours // 24} days"
