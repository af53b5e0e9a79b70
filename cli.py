"""The `loractl` command: its commands and options. What they do lies in `client` and `daemon`.

stdout is data, stderr is talk. Exit codes: 0 done, 1 our side failed, 2 the caller's doing,
130 interrupted.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__
from .bus.config import with_overrides
from .bus.ids import TenantId, checked_name
from .client import commands
from .client.access_commands import env, keys, tokenizer_cache
from .client.adapter_commands import adapters, tenant_option
from .client.boundary import guarded
from .client.options import example, placed, reaching, sampling_options, starting, training_options
from .client.rows import read_rows
from .client.run_plan import GivenSettings
from .client.runs import Job
from .client.startup import (
    Place,
    StartScreen,
    base_model_settings,
    check_addresses,
    check_base_model,
    daemon_for_run,
    start_settings,
    with_http,
)
from .client.terminal import EXIT_USER_ERROR, error_text, talk_console
from .client.verify_work import verify_adapter
from .daemon import launch


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "loractl model tiny /tmp/tiny",
        "loractl daemon start --base-model tiny=/tmp/tiny --detach",
        "loractl train rows.jsonl --adapter pirate",
        "loractl sample --adapter pirate 'Where is the treasure?'",
    ),
)
@click.version_option(__version__, prog_name="loractl")
def loractl() -> None:
    """Train many LoRA adapters at the same time on one shared base model, and sample from them."""


@loractl.group()
def daemon() -> None:
    """Start, watch, restart and stop the daemon that holds the model."""


@daemon.command(
    epilog=example(
        "loractl daemon start --base-model tiny=/tmp/tiny",
        "loractl daemon start --base-model Qwen/Qwen3-0.6B=~/models/qwen3 --samplers 2 --detach",
    )
)
@starting
@click.option("--detach", is_flag=True, help="Return when it is ready, and leave it running.")
@placed
def start(place: Place, detach: bool, **given: Any) -> int:
    """Start the daemon: in the foreground until Ctrl-C, or detached."""
    config = with_http(place.config(*start_settings(**given)))
    check_base_model(config)
    if not launch.running(config):
        check_addresses(config)
    screen = StartScreen(talk_console(), state_option=place.option)
    if not detach:
        return launch.run_foreground(config, screen.show)
    screen.show(launch.start_detached(config, config.daemon.ready_timeout_s, screen.show))
    return 0


@daemon.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@reaching
def status(place: Place, as_json: bool) -> int:
    """Show the daemon, its actors and the adapters it holds."""
    return commands.show_status(place.config(), as_json=as_json)


@daemon.command()
@placed
def stop(place: Place) -> int:
    """Stop the daemon and its actors, after what they have in hand."""
    launch.stop(place.config())
    talk_console().print("stopped")
    return 0


@daemon.command(epilog=example("loractl daemon restart", "loractl daemon restart --samplers 2"))
@starting
@placed
def restart(place: Place, **given: Any) -> int:
    """Stop the daemon and start it again, detached.

    It has the settings that it ran with, except for options given here; what was changed in loractl.toml
    since its start takes a stop and a start. Nothing is lost: what was under way is finished when it is
    ready.
    """
    running = launch.running_config(place.config())
    config = with_overrides(running, [*start_settings(**given), *place.overrides])
    check_base_model(config)
    check_addresses(config, running=running)
    launch.stop(running)
    talk_console().print("stopped")
    screen = StartScreen(talk_console(), state_option=place.option)
    screen.show(launch.start_detached(config, config.daemon.ready_timeout_s, screen.show))
    return 0


@daemon.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="How many lines at first, 0 for all.",
)
@placed
def logs(place: Place, follow: bool, lines: int) -> int:
    """Show the logs of the daemon and all actors as one."""
    return commands.show_logs(place.config(), follow=follow, lines=lines)


@loractl.command(
    epilog=example(
        "loractl train rows.jsonl --adapter pirate --rank 8 --lr 1e-3 --epochs 3",
        "loractl train rows.jsonl --adapter pirate --resume",
        "loractl train rows.jsonl --adapter pirate --base-model tiny=/tmp/tiny",
    )
)
@click.argument("data", type=click.Path(path_type=Path), metavar="DATA.jsonl")
@click.option("--adapter", required=True, metavar="NAME", help="The adapter to make, or to go on with.")
@training_options
@click.option("--resume", is_flag=True, help="Go on where an earlier run ended, with its settings.")
@click.option("--base-model", metavar="NAME[=PATH]", help="For the daemon that is started when none runs.")
@reaching
def train(place: Place, data: Path, adapter: str, resume: bool, base_model: str | None, **given: Any) -> int:
    """Train an adapter on chat rows, and publish it.

    A row is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    or {"prompt": "…", "completion": "…"}; what the assistant says is trained. All
    losses but cross_entropy take rows of sampled tokens instead: {"prompt_tokens": […],
    "tokens": […], "logprobs": […], "advantages": […]}. The formula of stable_reinforce is not
    published; importance_sampling with a KL penalty stands in for it.

    Ctrl-C saves, and --resume goes on from there to the same end. Without a running daemon, one is
    started for the run and stopped after it.
    """
    wanted = GivenSettings(**given)
    # Bad rows are told before a daemon is started; a resumed run knows its loss only from its record.
    rows = None if resume else read_rows(data, wanted.loss or "cross_entropy")
    job = Job(
        data=data, adapter=checked_name(adapter, what="an adapter"), given=wanted, resume=resume, rows=rows
    )
    daemon_options = [f"--config={each}" for each in place.overrides]
    daemon_options += [f"--base-model={base_model}"] if base_model else []
    words = [str(data), f"--adapter={adapter}", "--resume", *daemon_options]
    again = f"loractl train {place.option}{shlex.join(words)}"
    config = place.config(*(base_model_settings(base_model) if base_model else ()))
    with daemon_for_run(config, launch, talk_console()):
        return commands.train(config, job, again=again, base_model_given=base_model is not None)


@loractl.command(
    epilog=example(
        "loractl sample --adapter pirate 'Where is the treasure?'",
        "loractl sample --raw --temperature 0 --json - < prompt.txt",
    )
)
@click.argument("prompt", metavar="PROMPT|-")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object with tokens and logprobs.")
@reaching
def sample(place: Place, prompt: str, as_json: bool, **options: Any) -> int:
    """Answer PROMPT (- reads stdin), by an adapter or not."""
    return commands.sample(place.config(), prompt, as_json=as_json, **options)


@loractl.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@reaching
def usage(place: Place, as_json: bool) -> int:
    """Show what each tenant took of the trainer so far."""
    return commands.show_usage(place.config(), as_json=as_json)


@loractl.command()
@click.argument("name")
@tenant_option
@placed
def verify(place: Place, name: str, tenant: TenantId) -> int:
    """Prove that nobody influenced the adapter NAME.

    Its operations run again from the journal, alone in a fresh trainer, with fillers in the places of those
    who shared its passes; every answer and the whole state must be the same to the bit.
    """
    return verify_adapter(place.config(), name, tenant, launch.running_daemon)


for _command in (adapters, keys, env, tokenizer_cache):
    loractl.add_command(_command)


@loractl.group()
def model() -> None:
    """Make a model to try things with."""


@model.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--seed", default=0, show_default=True)
def tiny(directory: Path, seed: int) -> int:
    """Make a small Qwen3-shaped chat model in DIR, without a hub."""
    return commands.make_tiny(directory, seed)


@loractl.command()
@placed
def doctor(place: Place) -> int:
    """Check what is installed and works, and what is missing."""
    return commands.run_doctor(place.config())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; click's own errors become one line, as all others do."""
    try:
        code = loractl.main(arguments, prog_name="loractl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        return EXIT_USER_ERROR
    except click.Abort as abort:
        raise KeyboardInterrupt from abort
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "loractl"
        talk_console().print(error_text(f"{error.format_message()} (see `{path} --help`)"))
        return EXIT_USER_ERROR


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits with the command's code."""
    sys.exit(guarded(lambda: run(arguments)))
