"""What the demo shows: stages with their times, a row for each run, a table of answers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from loractl.client.progress import TokenRate
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from tenants import Learned, StepDone
from voices import HELD_QUESTION, QUESTION, VOICES, Voice

_LINES_PER_RUN = 5  # where there is no terminal


@contextmanager
def stage(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Say what goes on while it goes on, and then how long it took; what is noted is told with it."""
    began = time.monotonic()
    notes: list[str] = []
    with console.status(f"{title} …"):
        yield notes.append
    said = "".join(f": {note}" for note in notes)
    console.print(f"{time.monotonic() - began:5.1f} s  {title}{said}")


class Board:
    """One row for each voice on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        now = time.monotonic()
        self._rates = {voice.name: TokenRate(now) for voice in VOICES}
        self._progress = Progress(
            TextColumn("        {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:3.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = {
            voice.name: self._progress.add_task(f"[{voice.color}]{voice.name:7}", total=steps, facts="")
            for voice in VOICES
        }

    def show(self, voice: Voice, done: StepDone) -> None:
        rate = self._rates[voice.name].after(done.tokens, time.monotonic())
        facts = f"rank {voice.rank:2}  loss {done.loss:6.3f}  {rate:6,.0f} tokens/s"
        self._progress.update(self._tasks[voice.name], completed=done.step, facts=facts)
        every = max(1, self._steps // _LINES_PER_RUN)
        if not self._console.is_terminal and (done.step % every == 0 or done.step == 1):
            self._console.print(f"        {voice.name:7} {done.step:3}/{self._steps}  {facts}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def show_answers(
    console: Console, learned: Sequence[Learned], answers: Mapping[str, str], held: Mapping[str, str]
) -> None:
    console.print(f"\n[bold]{QUESTION}[/]")
    table = Table(show_lines=True)
    table.add_column("adapter")
    for column in ("rank", "steps", "first\nloss", "last\nloss", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("answer", ratio=1)
    table.add_row("base", "", "", "", "", "", _printable(answers["base"]))
    for each in learned:
        voice, losses = each.voice, each.losses
        numbers = (voice.rank, len(losses), f"{losses[0]:.2f}", f"{losses[-1]:.2f}")
        rate = f"{each.tokens / each.seconds:,.0f}"
        table.add_row(_name(voice.name), *map(str, numbers), rate, _printable(answers[voice.name]))
    console.print(table)
    console.print(f"\n[bold]{HELD_QUESTION}[/]  (in none of the files)")
    other = Table(show_lines=True)
    other.add_column("adapter")
    other.add_column("answer", ratio=1)
    for name, text in held.items():
        other.add_row(_name(name), _printable(text))
    console.print(other)


def _name(adapter: str) -> Text:
    return Text(adapter, next((voice.color for voice in VOICES if voice.name == adapter), ""))


def _printable(text: str) -> Text:
    """A model may say anything: what would steer the terminal is shown as a harmless mark."""
    return Text("".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
