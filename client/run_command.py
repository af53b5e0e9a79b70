"""Drives one training run in front of a person: its screen, its end, its exit code."""

from collections.abc import Callable

from rich.console import Console

from ..bus.errors import DaemonGone, DaemonNotRunning
from .interrupts import StopRequest
from .progress import RunScreen
from .runs import ReadyRun
from .screens import receipt_text
from .terminal import EXIT_INTERRUPTED
from .training import Published, RunEvent, Stopped


class Talk:
    """Where lines go while a run is under way: to its screen once there is one."""

    def __init__(self, console: Console) -> None:
        self.say: Callable[[str], None] = console.print
        self._last_waiting = ""

    def waiting(self, reason: str) -> None:
        """Why a request waits; once is enough."""
        if reason != self._last_waiting:
            self.say(f"waiting: {reason}")
        self._last_waiting = reason


def drive_run(ready: ReadyRun, data: Console, talk: Console, *, resume_command: str) -> int:
    """Train to the end, or to Ctrl-C; returns the exit code. The receipt is data, the rest is talk."""
    name, step, total = ready.adapter.name, ready.adapter.details.step, ready.plan.total_steps
    if ready.published is not None:
        talk.print(
            f"{name!r} is at step {step} of {total} and published as version {ready.published}: "
            "nothing is left to train (--epochs or --max-steps make the run longer)"
        )
        return 0
    talk.print(_plan_text(ready))
    try:
        last = _driven(ready, talk)
    except (DaemonGone, DaemonNotRunning):
        talk.print(f"once the daemon runs again, go on with: {resume_command}")
        raise
    match last:
        case Published(receipt=receipt):
            data.print(receipt_text(receipt))
            return 0
        case Stopped(step=stopped_at):
            talk.print(f"stopped at step {stopped_at} of {total}, saved; go on with: {resume_command}")
            return EXIT_INTERRUPTED
    raise AssertionError("a run ends published or stopped, or raises")


def _driven(ready: ReadyRun, talk: Console) -> RunEvent | None:
    """Its last event."""
    last: RunEvent | None = None
    name, step = ready.adapter.name, ready.adapter.details.step
    with StopRequest() as stop, RunScreen(talk, name, step=step, total=ready.plan.total_steps) as screen:
        for last in ready.training(stop).events(from_checkpoint=ready.from_checkpoint):
            screen.show(last)
    return last


def _plan_text(ready: ReadyRun) -> str:
    settings, step = ready.settings, ready.adapter.details.step
    # Where it goes back to is told when it has.
    begin = f"from step {step} " if step and not ready.from_checkpoint else ""
    return (
        f"{ready.adapter.name}: {len(ready.datums)} rows, {ready.plan.total_steps} steps of {settings.batch_size} rows "
        f"{begin}(rank {settings.rank}, alpha {settings.alpha:g}, lr {settings.learning_rate:g}, {settings.loss})"
    )
