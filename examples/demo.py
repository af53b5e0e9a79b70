"""Three tenants train adapters at the same time through the Tinker SDK, then all adapters answer the same.

    python examples/demo.py            between one and two minutes on two cores
    python examples/demo.py --quick    a few steps only: everything runs, nothing is learned

Everything it makes lies in a temporary directory: the model, the daemon's state, the logs. The daemon
is stopped however the demo ends. The demo fails if the adapters did not learn what it says they do, or
if a tenant can reach what is another's.
"""

import argparse
import asyncio
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from demo_acts import show
from demo_screen import show_answers, stage
from loractl.bus.config import Config, load_config
from loractl.bus.errors import DaemonGone, DaemonNotRunning, LoractlError
from loractl.bus.messages import DaemonStatus
from loractl.client.interrupts import interrupt_when_ended
from loractl.client.startup import base_model_settings
from loractl.client.terminal import EXIT_FAILED, EXIT_INTERRUPTED, error_text
from loractl.client.tiny_model import TRAINING_STEPS, make_tiny_model
from loractl.daemon import launch
from rich.console import Console
from tenants import SDK_ERRORS
from voices import broken_promises

MODEL = "tiny"
WIDTH = 100
# The SDK reports nothing to its makers, and nothing asks a model hub.
ENVIRONMENT = {"TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}


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
    os.environ.update(ENVIRONMENT)
    console = Console(highlight=False, width=min(WIDTH, Console().width) if sys.stdout.isatty() else WIDTH)
    interrupt_when_ended()  # so that its daemon stops, too
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
    except (LoractlError, *SDK_ERRORS, Failure) as error:
        message = error.message if isinstance(error, LoractlError) else str(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print(error_text(message))
        return EXIT_FAILED
    finally:
        _leave(root, keep)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train three adapters through the Tinker SDK at the same time and compare them."
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only, for a test of the way")
    parser.add_argument("--keep", action="store_true", help="leave the model and the adapters on the disk")
    return parser.parse_args()


def _leave(root: Path, keep: bool) -> None:
    if not keep:
        shutil.rmtree(root, ignore_errors=True)
        return
    state, model = shlex.quote(str(root / "state")), shlex.quote(str(root / "model"))
    start = f"loractl daemon start --state-dir {state} --base-model {MODEL}={model} --detach"
    print(f"kept {root} (logs in {root / 'state' / 'logs'}); to go on with it:", file=sys.stderr)
    print(f"  {start}\n  {_env_command(root)}", file=sys.stderr)


def _env_command(root: Path) -> str:
    return f'eval "$(loractl env --state-dir {shlex.quote(str(root / "state"))})"'


def run_demo(console: Console, root: Path, scale: Scale) -> None:
    """Raises:
    Failure: something that the demo promises did not come true.
    LoractlError, SDK_ERRORS: a part of it failed.
    """
    began = time.monotonic()
    with stage(console, "a base model, made from nothing") as note:
        made = make_tiny_model(root / "model", steps=scale.model_steps)
        note(f"{made.parameters:,} parameters")
    settings = [*base_model_settings(f"{MODEL}={made.directory}"), "daemon.http=auto"]
    config = load_config(state_dir=str(root / "state"), overrides=settings)
    with daemon(console, config) as status:
        console.print(f"         HTTP on {status.http}; while it runs, a script of yours may join in:")
        console.print(f"         {_env_command(root)}", soft_wrap=True)
        shown = asyncio.run(show(console, config, status, scale.steps))
    show_answers(console, shown.learned, shown.answers, shown.held)
    console.print(f"\n{time.monotonic() - began:.0f} s in all, on one base model in one daemon")
    console.print("with a daemon of your own (`loractl daemon start`), `loractl env` points the SDK at it:")
    console.print('  eval "$(loractl env)" && python examples/tinker_sdk.py')
    losses = {each.voice.name: each.losses for each in shown.learned}
    broken = broken_promises(losses, shown.answers, shrink=scale.shrink, heard=scale.heard)
    if broken := [*broken, *shown.broken]:
        raise Failure("; ".join(broken))


@contextmanager
def daemon(console: Console, config: Config) -> Iterator[DaemonStatus]:
    """A daemon that runs as long as this context, whatever happens in it."""
    with stage(console, "a daemon") as note:
        status = launch.start_detached(config, config.daemon.ready_timeout_s)
        known = [actor for actor in status.actors if actor.rss_bytes]
        note(", ".join(f"{actor.actor} {actor.rss_bytes / 2**20:.0f} MiB" for actor in known))
    try:
        yield status
    finally:
        # When it died before, the error that is under way tells of it.
        with stage(console, "the daemon stops"), suppress(DaemonNotRunning, DaemonGone):
            launch.stop(config)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: the SDK's threads may still hold calls, which would complain while the interpreter ends.
    os._exit(code)
