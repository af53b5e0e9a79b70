"""The daemon's start: which model it shall serve, and what a person sees while its actors load."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..bus.config import Config
from ..bus.errors import InvalidConfig
from ..bus.messages import ActorStatus, DaemonStatus
from .terminal import duration_text, size_text


def base_model_settings(text: str) -> list[str]:
    """`NAME`, `NAME=PATH` or a directory as settings. Paths are made absolute: the daemon has a
    working directory of its own."""
    name, equals, path = text.partition("=")
    if not name or (equals and not path):
        raise InvalidConfig(f"--base-model {text!r}: write NAME, or NAME=PATH to a model directory")
    if not equals and Path(name).expanduser().is_dir():
        name, path = Path(name).expanduser().absolute().name, name
    settings = [f"model.name={name}"]
    return [*settings, f"model.path={Path(path).expanduser().absolute()}"] if path else settings


def check_base_model(config: Config) -> None:
    """Raises:
    InvalidConfig: no base model is configured, or its directory is not there.
    """
    if not config.model.name:
        raise InvalidConfig(
            "no base model: give --base-model NAME=PATH (`loractl model tiny DIR` makes one to try), "
            f"or set model.name and model.path in {config.state_dir}/loractl.toml"
        )
    if config.model.path and not (Path(config.model.path) / "config.json").is_file():
        raise InvalidConfig(
            f"{config.model.path} is no model directory: it has no config.json (PATH in --base-model NAME=PATH)"
        )


def check_same_base_model(config: Config, running: DaemonStatus) -> None:
    """A base model was asked for, and a daemon runs already.

    Raises:
        InvalidConfig: it serves another one.
    """
    if config.model.name and config.model.name != running.base_model:
        raise InvalidConfig(
            f"the daemon on {running.state_dir} serves {running.base_model!r}, not {config.model.name!r}: leave out "
            "--base-model, stop that daemon, or use another --state-dir"
        )


class StartScreen:
    """One line for each change of each actor."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def show(self, actors: tuple[ActorStatus, ...]) -> None:
        for actor in actors:
            if self._shown.get(actor.actor) != actor.phase:
                self._shown[actor.actor] = actor.phase
                self._console.print(_actor_line(actor))


def _actor_line(actor: ActorStatus) -> Text:
    style = {"ready": "green", "failed": "bold red"}.get(actor.phase, "yellow")
    facts = [actor.details] if actor.details else []
    if actor.phase == "ready" and actor.rss_bytes:
        facts.append(size_text(actor.rss_bytes))
    return Text.assemble(f"{actor.actor:12}", (f"{actor.phase:12}", style), ", ".join(facts))


def show_how_to_go_on(console: Console, status: DaemonStatus, state_option: str) -> None:
    """What to type next. state_option: `--state-dir DIR ` where that is needed, else empty."""
    console.print(
        f"loractl serves {status.base_model} (pid {status.pid}, ready after {duration_text(status.uptime_s)})"
    )
    console.print(f"state in {status.state_dir}" + (f", http on {status.http}" if status.http else ""))
    console.print(f"  loractl train {state_option}DATA.jsonl --adapter NAME")
    console.print(f"  loractl sample {state_option}--adapter NAME 'Hello'")
    console.print(f"  loractl daemon stop {state_option}".rstrip())
