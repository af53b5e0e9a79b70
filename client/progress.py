"""What a training run looks like while it runs: a bar on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from typing import Self, assert_never

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .training import Published, RunEvent, Saved, StepDone, Stopped, TrainerRestarted, WentBack

_RATE_STEPS = 20
_LINES_PER_RUN = 20
_LINE_EVERY_S = 10.0


class TokenRate:
    """Positions per second over the last steps."""

    def __init__(self, now: float) -> None:
        self._seen: deque[tuple[float, int]] = deque([(now, 0)], maxlen=_RATE_STEPS + 1)

    def after(self, tokens: int, now: float) -> float:
        """The rate once a step of so many positions was done."""
        self._seen.append((now, self._seen[-1][1] + tokens))
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(last_at - first_at, 1e-9)


class RunScreen:
    """Use as a context: the bar is there from its start to its end."""

    def __init__(
        self,
        console: Console,
        name: str,
        *,
        step: int,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._total = total
        self._rate = TokenRate(clock())
        self._line_at = float("-inf")
        self._bar = _bar(console) if console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total, completed=step, facts="")

    def show(self, event: RunEvent) -> None:
        match event:
            case StepDone():
                self._show_step(event)
            case WentBack(step=step):
                self._go_on_from(step, f"going on from step {step}, where the run was saved")
            case TrainerRestarted(step=step):
                self._go_on_from(
                    step, f"the trainer restarted: going on from step {step}, the last checkpoint"
                )
            case Saved() | Stopped() | Published():
                pass
            case _:
                assert_never(event)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _go_on_from(self, step: int, said: str) -> None:
        self.say(said)
        if self._bar is not None:
            self._bar.reset(self._task, completed=step, total=self._total)

    def _show_step(self, done: StepDone) -> None:
        now = self._clock()
        rate = self._rate.after(done.tokens, now)
        facts = f"loss {done.loss:.4f}  grad norm {done.grad_norm:.3g}  {rate:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done.step, facts=facts)
        elif self._line_is_due(done, now):
            self._line_at = now
            self.say(f"step {done.step}/{done.total}  {facts}")

    def _line_is_due(self, done: StepDone, now: float) -> bool:
        every = max(1, done.total // _LINES_PER_RUN)
        ends = done.step in (1, done.total)
        return ends or done.step % every == 0 or now - self._line_at >= _LINE_EVERY_S


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        refresh_per_second=8,
        expand=True,
    )
