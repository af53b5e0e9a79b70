"""Three adapters learn three voices at the same time on one small base model, then all answer the same.

    python examples/demo.py            between one and two minutes on two cores
    python examples/demo.py --quick    a few steps only: everything runs, nothing is learned

Everything it makes lies in a temporary directory: the model, the daemon's state, the logs. The daemon
is stopped however the demo ends. The demo fails if the adapters did not learn what it says they do.
"""

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from demo_screen import Board, Learned, receipts_text, show_answers, stage
from loractl.bus.config import Config, load_config
from loractl.bus.errors import DaemonGone, DaemonNotRunning, LoractlError
from loractl.bus.layout import StateLayout
from loractl.client import Service, connect
from loractl.client.run_plan import GivenSettings
from loractl.client.runs import Job, prepare_run
from loractl.client.startup import base_model_settings
from loractl.client.terminal import EXIT_FAILED, EXIT_INTERRUPTED, error_text
from loractl.client.tiny_model import TRAINING_STEPS, make_tiny_model
from loractl.client.training import Published, StepDone, TrainerRestarted
from loractl.daemon import launch
from rich.console import Console
from voices import HELD_QUESTION, QUESTION, VOICES, Voice, broken_promises

LEARNING_RATE = 5e-3
WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done, and what must come of it, see `voices.broken_promises`."""

    model_steps: int
    steps: int
    shrink: float
    heard: bool


FULL = Scale(model_steps=TRAINING_STEPS, steps=132, shrink=3.0, heard=True)
QUICK = Scale(model_steps=30, steps=12, shrink=1.0, heard=False)


class Failure(Exception):
    """The demo did not show what it promises."""


def main() -> int:
    options = _options()
    console = Console(highlight=False, width=min(WIDTH, Console().width) if sys.stdout.isatty() else WIDTH)
    # A demo that is ended from outside stops its daemon, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="loractl-demo-"))
    keep = True  # the logs of a failure
    try:
        run_demo(console, root, QUICK if options.quick else FULL)
        keep = options.keep
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        keep = options.keep
        return EXIT_INTERRUPTED
    except (LoractlError, Failure) as error:
        message = error.message if isinstance(error, LoractlError) else str(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print(error_text(message))
        return EXIT_FAILED
    finally:
        _leave(root, keep)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train three adapters at the same time and compare them.")
    parser.add_argument("--quick", action="store_true", help="a few steps only, for a test of the way")
    parser.add_argument("--keep", action="store_true", help="leave the model and the adapters on the disk")
    return parser.parse_args()


def _leave(root: Path, keep: bool) -> None:
    if not keep:
        shutil.rmtree(root, ignore_errors=True)
        return
    state, model = shlex.quote(str(root / "state")), shlex.quote(str(root / "model"))
    print(f"kept {root} (logs in {root / 'state' / 'logs'}); to go on with it:", file=sys.stderr)
    print(f"  loractl daemon start --state-dir {state} --base-model tiny={model}", file=sys.stderr)


def run_demo(console: Console, root: Path, scale: Scale) -> None:
    """Raises:
    Failure: something that the demo promises did not come true.
    LoractlError: a part of it failed.
    """
    began = time.monotonic()
    with stage(console, "a base model, made from nothing") as note:
        made = make_tiny_model(root / "model", steps=scale.model_steps)
        note(f"{made.parameters:,} parameters")
    config = load_config(
        state_dir=str(root / "state"), overrides=base_model_settings(f"tiny={made.directory}")
    )
    with daemon(console, config):
        learned = train_all(console, config, scale.steps)
        with stage(console, "the base and three adapters answer together"), connect(config=config) as service:
            answers = ask_all(service, QUESTION)
            held = ask_all(service, HELD_QUESTION)
    show_answers(console, learned, answers, held)
    console.print(f"\n{time.monotonic() - began:.0f} s in all, on one base model in one daemon")
    losses = {each.voice.name: each.losses for each in learned}
    if broken := broken_promises(losses, answers, shrink=scale.shrink, heard=scale.heard):
        raise Failure("; ".join(broken))


@contextmanager
def daemon(console: Console, config: Config) -> Iterator[None]:
    """A daemon that runs as long as this context, whatever happens in it."""
    with stage(console, "a daemon with a trainer and a sampler") as note:
        status = launch.start_detached(config, config.daemon.ready_timeout_s)
        note(", ".join(f"{actor.actor} {actor.rss_bytes / 2**20:.0f} MiB" for actor in status.actors))
    try:
        yield
    finally:
        # When it died before, the error that is under way tells of it.
        with stage(console, "the daemon stops"), suppress(DaemonNotRunning, DaemonGone):
            launch.stop(config)


Told = SimpleQueue[tuple[Voice, StepDone | TrainerRestarted]]


def train_all(console: Console, config: Config, steps: int) -> list[Learned]:
    """Train all voices at the same time, each in a thread with a connection of its own."""
    told: Told = SimpleQueue()
    stop = threading.Event()
    began = time.monotonic()
    with ThreadPoolExecutor(len(VOICES)) as pool, Board(console, steps) as board:
        runs = [pool.submit(train_voice, voice, config, steps, stop, told) for voice in VOICES]
        try:
            watch(runs, told, board)
        finally:
            stop.set()  # on Ctrl-C, or when one failed, the others end after the step in hand
    # Those that were stopped because another failed have the least to say.
    for error in sorted(filter(None, (run.exception() for run in runs)), key=_is_own):
        raise error
    learned = [run.result() for run in runs]
    seconds = time.monotonic() - began
    rate = sum(each.tokens for each in learned) / seconds
    console.print(f"{seconds:5.1f} s  three adapters trained and published: {rate:,.0f} tokens/s together")
    console.print(f"         {receipts_text([each.receipt for each in learned])}")
    return learned


def _is_own(error: BaseException) -> bool:
    return isinstance(error, Failure)


def watch(runs: Sequence[Future[Learned]], told: Told, board: Board) -> None:
    """Show what the runs tell until all have ended, or one has failed."""
    while not (all(run.done() for run in runs) and told.empty()):
        if any(run.done() and run.exception() for run in runs):
            return
        try:
            board.show(*told.get(timeout=0.1))
        except Empty:
            continue


def train_voice(voice: Voice, config: Config, steps: int, stop: threading.Event, told: Told) -> Learned:
    given = GivenSettings(rank=voice.rank, learning_rate=LEARNING_RATE, max_steps=steps)
    job = Job(data=voice.data, adapter=voice.name, given=given, resume=False)
    with connect(config=config) as service:
        ready = prepare_run(service, StateLayout(Path(config.state_dir)), job, say=lambda _: None)
        began = ended = time.monotonic()
        done: dict[int, StepDone] = {}  # by step: after a restart some are taken again
        for event in ready.training(stop.is_set).events():
            match event:
                case StepDone():
                    done[event.step] = event
                    ended = time.monotonic()
                    told.put((voice, event))
                case TrainerRestarted():
                    told.put((voice, event))
                case Published(receipt=receipt):
                    return Learned(
                        voice=voice,
                        losses=[each.loss for each in done.values()],
                        tokens=sum(each.tokens for each in done.values()),
                        seconds=ended - began,
                        receipt=receipt,
                    )
                case _:
                    pass
    raise Failure(f"{voice.name} was stopped at step {len(done)} of {steps}")


def ask_all(service: Service, question: str) -> dict[str, str]:
    """The answer of the base and of each adapter, all under way at the same time."""
    names = {"base": None, **{voice.name: voice.name for voice in VOICES}}
    under_way = {
        name: service.submit_sample(
            service.sample_request(question, adapter=adapter, max_tokens=80, temperature=0.0)
        )
        for name, adapter in names.items()
    }
    return {name: answer.result().texts[0].strip() for name, answer in under_way.items()}


if __name__ == "__main__":
    sys.exit(main())
