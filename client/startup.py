"""The daemon's start: which model it shall serve, and what a person sees while its actors load."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..bus.config import Config
from ..bus.errors import InvalidConfig
from ..bus.layout import StateLayout
from ..bus.messages import ActorPhase, ActorStatus, DaemonStatus
from .terminal import duration_text

_LAST_LINES = 12


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
    """A line for each change of an actor, and what to type next once all are ready.

    Fed with the daemon's status: at every change in the foreground, once for a detached daemon.
    """

    def __init__(self, console: Console, state_option: str) -> None:
        """state_option: `--state-dir DIR ` where commands need it, else empty."""
        self._console = console
        self._state_option = state_option
        self._phases: dict[str, ActorPhase] = {}
        self._told = False

    def show(self, status: DaemonStatus) -> None:
        for actor in status.actors:
            if self._phases.get(actor.actor) != actor.phase:
                self._phases[actor.actor] = actor.phase
                self._console.print(_actor_line(actor))
                if actor.phase == "failed":
                    self._show_last_words(status, actor)
        if not self._told and all(phase == "ready" for phase in self._phases.values()):
            self._told = True
            self._show_how_to_go_on(status)

    def _show_how_to_go_on(self, status: DaemonStatus) -> None:
        option = self._state_option
        http = f", http on {status.http}" if status.http else ""
        self._console.print(
            f"ready after {duration_text(status.uptime_s)}: serving {status.base_model}, pid {status.pid}, "
            f"state in {status.state_dir}{http}\n"
            f"  loractl train {option}DATA.jsonl --adapter NAME\n"
            f"  loractl sample {option}--adapter NAME 'Hello'\n"
            f"  loractl daemon stop {option}".rstrip()
        )

    def _show_last_words(self, status: DaemonStatus, actor: ActorStatus) -> None:
        file = StateLayout(Path(status.state_dir)).logs / f"{actor.actor}.out"
        lines = file.read_text(errors="replace").splitlines()[-_LAST_LINES:] if file.is_file() else []
        for line in lines:
            self._console.print(f"  {line}")
        self._console.print(f"  (from {file}; `loractl daemon logs {self._state_option}` has more)")


def _actor_line(actor: ActorStatus) -> Text:
    style = {"ready": "green", "failed": "bold red"}.get(actor.phase, "yellow")
    return Text.assemble(f"{actor.actor:12}", (f"{actor.phase:12}", style), actor.details)
