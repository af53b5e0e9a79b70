"""The daemon's start: which model it shall serve, and what a person sees while its actors load."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from ..bus.config import Config, load_config
from ..bus.curve import checked_server
from ..bus.errors import DaemonNotRunning, InvalidConfig
from ..bus.layout import StateLayout
from ..bus.listening import is_open_to_others, listen
from ..bus.messages import ActorPhase, ActorStatus, DaemonStatus
from .screens import disk_text
from .terminal import duration_text


@dataclass(frozen=True, slots=True)
class Place:
    """Which daemon is meant, and settings on top of its file."""

    state_dir: str | None
    overrides: tuple[str, ...]

    def config(self, *more: str) -> Config:
        return load_config(state_dir=self.state_dir, overrides=[*more, *self.overrides])

    @property
    def option(self) -> str:
        """The option to repeat in commands that a person is told to type."""
        return f"--state-dir {shlex.quote(self.state_dir)} " if self.state_dir else ""


def start_settings(
    base_model: str | None, http: str | None, samplers: int | None, chaos: int | None
) -> list[str]:
    """The options of a start as settings, those that were given."""
    given = {"daemon.http": http, "sampler.count": samplers, "daemon.chaos": chaos}
    settings = base_model_settings(base_model) if base_model else []
    return settings + [f"{name}={value}" for name, value in given.items() if value is not None]


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
    directory = Path(config.model.path or config.model.name)
    if (directory / "config.json").is_file():
        return
    if not config.model.path:
        raise InvalidConfig(
            f"there is no model directory {config.model.name}: say where it is with "
            f"--base-model {config.model.name}=PATH (no hub is asked)"
        )
    raise InvalidConfig(
        f"{directory} is no model directory: it has no config.json (PATH in --base-model NAME=PATH)"
    )


def with_http(config: Config) -> Config:
    """A daemon that a person starts serves HTTP, unless it was told where, or not to."""
    if config.daemon.http:
        return config
    return replace(config, daemon=replace(config.daemon, http="auto"))


def check_addresses(config: Config, *, running: Config | None = None) -> None:
    """Tell an address that cannot be served before anything starts. running: of a daemon that makes way.

    Raises:
        StartFailed: it is in use, or not ours.
        InvalidConfig: it is a tcp address, and there are no CURVE keys.
    """
    if config.daemon.listen:
        checked_server(StateLayout(Path(config.state_dir)), config.daemon.listen)
    leaves = running is not None and running.daemon.http == config.daemon.http
    if config.daemon.serves_http and config.daemon.http != "auto" and not leaves:
        listen(config.daemon.http).close()


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


class Launcher(Protocol):
    """`daemon.launch`, which this package may not import."""

    def running(self, config: Config) -> bool: ...
    def start_detached(
        self, config: Config, timeout_s: float, on_progress: Callable[[DaemonStatus], None] | None
    ) -> DaemonStatus: ...
    def stop(self, config: Config) -> None: ...


@contextlib.contextmanager
def daemon_for_run(config: Config, launcher: Launcher, talk: Console) -> Iterator[None]:
    """The daemon that runs already, here or elsewhere, or one that runs as long as this context."""
    if config.client.connect or launcher.running(config):
        yield
        return
    check_base_model(config)
    talk.print(f"no daemon runs on {config.state_dir}: starting one with {config.model.name} for this run")
    screen = StartScreen(talk, state_option=None)
    launcher.start_detached(config, config.daemon.ready_timeout_s, screen.show)
    try:
        yield
    finally:
        with contextlib.suppress(DaemonNotRunning):  # it died, and the run's own error says so
            launcher.stop(config)
            talk.print("stopped the daemon")


class StartScreen:
    """A line for each change of an actor, and what to type next once all are ready."""

    def __init__(self, console: Console, *, state_option: str | None) -> None:
        """state_option: `--state-dir DIR ` where commands need it, else empty; None to leave out what
        to type next."""
        self._console = console
        self._state_option = state_option
        self._phases: dict[str, ActorPhase] = {}

    def show(self, status: DaemonStatus) -> None:
        """Told at every change, and as often besides as one likes."""
        changed = [a for a in status.actors if self._phases.get(a.actor) != a.phase]
        for actor in changed:
            self._phases[actor.actor] = actor.phase
            self._console.print(_actor_line(actor))
        if changed and self._state_option is not None and set(self._phases.values()) == {"ready"}:
            self._console.print(_how_to_go_on(status, self._state_option))
            self._state_option = None


def _actor_line(actor: ActorStatus) -> Text:
    style = {"ready": "green", "failed": "bold red"}.get(actor.phase, "yellow")
    return Text.assemble(f"{actor.actor:12}", (f"{actor.phase:12}", style), actor.details)


def _how_to_go_on(status: DaemonStatus, option: str) -> str:
    ready = f"ready after {duration_text(status.uptime_s)}: serving {status.base_model}"
    lines = [
        f"{ready}, pid {status.pid}, state in {status.state_dir}",
        *([f"the disk of {status.state_dir} is {said}"] if (said := disk_text(status)) else []),
        *_http_lines(status.http, option),
        f"  loractl train {option}DATA.jsonl --adapter NAME",
        f"  loractl sample {option}--adapter NAME 'Hello'",
        f"  loractl daemon stop {option}".rstrip(),
    ]
    return "\n".join(lines)


def _http_lines(url: str, option: str) -> list[str]:
    if not url:
        return []
    env = f"loractl env {option}".rstrip()
    lines = [f'HTTP on {url}: for the Tinker SDK, eval "$({env})"']
    if is_open_to_others(url):
        lines += [
            f"  other machines can reach it, with a key: loractl keys create {option}NAME",
            "  keys and data travel as plain HTTP, which others can read: put a proxy with TLS in front",
        ]
    return lines
