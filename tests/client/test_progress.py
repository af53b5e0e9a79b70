"""A run's screen: lines without a terminal, a bar with one, and honest rates."""

import io

from loractl.client.progress import RunScreen, TokenRate
from loractl.client.training import StepDone, TrainerRestarted, WentBack
from rich.console import Console


def done(step: int, total: int = 100) -> StepDone:
    return StepDone(step, total, loss=2.5, grad_norm=0.125, tokens=1000, trained=400)


def plain_screen(stream: io.StringIO, total: int = 100) -> RunScreen:
    clock = iter(range(1000))
    return RunScreen(Console(file=stream), "pirate", step=0, total=total, clock=lambda: float(next(clock)))


def test_without_a_terminal_there_are_about_twenty_lines_a_run():
    stream = io.StringIO()

    with plain_screen(stream) as screen:
        for step in range(1, 101):
            screen.show(done(step))

    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 2.5000  grad norm 0.125  1,000 tokens/s"
    assert lines[-1].startswith("step 100/100")
    assert len(lines) == 21


def test_the_rate_is_that_of_the_last_steps_only():
    rate = TokenRate(now=0.0)
    for second in range(1, 30):
        rate.after(10, float(second))

    for second in range(30, 50):
        last = rate.after(100, float(second))

    assert last == 100.0


def test_a_restart_is_told_and_the_bar_goes_back():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, highlight=False)

    with RunScreen(console, "pirate", step=0, total=10) as screen:
        screen.show(done(7, 10))
        screen.show(TrainerRestarted(5, "it died"))
        screen.show(done(6, 10))

    assert "the trainer restarted: going on from step 5" in stream.getvalue()
    assert "6/10" in stream.getvalue()


def test_where_a_resumed_run_goes_on_is_told_and_the_bar_begins_there():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, highlight=False)

    with RunScreen(console, "pirate", step=9, total=10) as screen:
        screen.show(WentBack(5))

    assert "going on from step 5, where the run was saved" in stream.getvalue()
    assert "5/10" in stream.getvalue()
