"""Options of the commands that have many, or have them in common. What the commands are lies in `cli`."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from ..bus.messages import LossName
from .startup import Place

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def example(*lines: str) -> str:
    r"""Lines that `--help` shows as they are, below everything else (\b keeps click from filling them)."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def placed(command: CommandT) -> CommandT:
    """Add the options that say which daemon is meant; the command gets them as its `place`."""

    @click.option(
        "--state-dir", metavar="DIR", help="Where the daemon keeps everything.  [env: LORACTL_STATE_DIR]"
    )
    @click.option(
        "--config", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting, as trainer.slots=4."
    )
    @functools.wraps(command)
    def with_place(*, state_dir: str | None, overrides: tuple[str, ...], **options: Any) -> Any:
        return command(place=Place(state_dir, overrides), **options)

    return with_place  # type: ignore[return-value]  # the same command, with two options more


def reaching(command: CommandT) -> CommandT:
    """As `placed`, for commands that a daemon on another machine serves as well."""

    @click.option(
        "--connect", metavar="tcp://HOST:PORT", help="A daemon elsewhere.  [env: LORACTL_CLIENT__CONNECT]"
    )
    @click.option("--curve-key", metavar="FILE", help="The key for it.  [env: LORACTL_CLIENT__CURVE_KEY]")
    @placed
    @functools.wraps(command)
    def with_daemon(*, place: Place, connect: str | None, curve_key: str | None, **options: Any) -> Any:
        given = {"client.connect": connect, "client.curve_key": curve_key}
        more = tuple(f"{name}={value}" for name, value in given.items() if value is not None)
        return command(place=Place(place.state_dir, (*place.overrides, *more)), **options)

    return with_daemon  # type: ignore[return-value]  # as above


def starting(command: CommandT) -> CommandT:
    """What a daemon is started with, besides settings; see `startup.start_settings`."""
    return _with(
        command,
        click.option(
            "--base-model", metavar="NAME[=PATH]", help="The model to serve, and the directory that holds it."
        ),
        click.option(
            "--http",
            metavar="HOST:PORT|none",
            help="Where to serve HTTP.  [default: 127.0.0.1 and a port it keeps]",
        ),
        click.option("--samplers", type=int, metavar="N", help="Sampler processes.  [default: 1]"),
        click.option(
            "--chaos",
            type=click.IntRange(1),
            metavar="SEED",
            help="Lose, repeat and delay messages and kill actors, to try a client with.",
        ),
    )


def training_options(command: CommandT) -> CommandT:
    """What a run trains and how: the fields of `GivenSettings`."""
    return _with(
        command,
        click.option("--rank", type=int, help="Rank of the adapter.  [default: 16]"),
        click.option("--alpha", type=float, help="alpha / rank scales its output.  [default: 32]"),
        click.option("--lr", "learning_rate", type=float, help="Learning rate of AdamW.  [default: 1e-4]"),
        click.option("--batch-size", type=int, help="Rows a step.  [default: 8]"),
        click.option(
            "--epochs", type=int, help="Times through the data.  [default: 1, or as --max-steps needs]"
        ),
        click.option("--max-steps", type=int, help="Stop after so many steps."),
        click.option("--loss", type=click.Choice(get_args(LossName)), help="[default: cross_entropy]"),
        click.option("--seed", type=int, help="For fresh weights and the order of rows.  [default: 0]"),
        click.option(
            "--max-length", type=int, help="Cut rows to so many tokens.  [default: refuse long ones]"
        ),
        click.option("--train-attn/--no-train-attn", default=None, help="Adapt attention.  [default: on]"),
        click.option("--train-mlp/--no-train-mlp", default=None, help="Adapt the MLPs.  [default: on]"),
        click.option(
            "--train-unembed/--no-train-unembed", default=None, help="Adapt the output layer.  [default: off]"
        ),
        click.option("--save-every", type=int, help="Steps from one checkpoint to the next.  [default: 50]"),
    )


def sampling_options(command: CommandT) -> CommandT:
    """Who answers and how: `SampleOptions`."""
    return _with(
        command,
        click.option("--adapter", metavar="NAME", help="Without one, the base model answers."),
        click.option("--version", type=int, help="A published version.  [default: the newest]"),
        click.option(
            "--max-tokens",
            type=click.IntRange(1),
            metavar="N",
            default=256,
            show_default=True,
            help="Tokens an answer may have.",
        ),
        click.option(
            "--temperature", default=1.0, show_default=True, help="0 takes the likeliest token each time."
        ),
        click.option("--seed", type=int, help="The same seed gives the same text."),
        click.option(
            "-n",
            "num_samples",
            type=click.IntRange(1),
            metavar="N",
            default=1,
            show_default=True,
            help="How many answers.",
        ),
        click.option("--raw", is_flag=True, help="Leave the prompt as it is, without the chat template."),
    )


def _with(command: CommandT, *options: Callable[[CommandT], CommandT]) -> CommandT:
    """Shown in the order given here: click puts the last one applied first."""
    for option in reversed(options):
        command = option(command)
    return command
