"""Real daemons with real actors; every one is ended, with all it started, when its test is over."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loractl.bus.config import Config, load_config
from loractl.tests.daemon.real_daemon import RealDaemon, actor_argv

# Quick restarts. Who is silent is given time: only a test of those who hang waits for less.
SETTINGS = (
    "daemon.heartbeat_s=0.1",
    "daemon.heartbeat_timeout_s=60",
    "daemon.restart_first_s=0.05",
    "daemon.restart_limit=3",
    "sampler.count=0",
)


@contextmanager
def short_lived_directory() -> Iterator[Path]:
    # A short name, because a socket's path may have about 100 bytes.
    path = Path(tempfile.mkdtemp(prefix="lo"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def settings_for(state_dir: Path) -> Config:
    return load_config(state_dir=str(state_dir), environ={}, overrides=SETTINGS)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with short_lived_directory() as path:
        yield path


@pytest.fixture
def config(state_dir: Path) -> Config:
    return settings_for(state_dir)


@pytest.fixture(scope="session")
def shared() -> Iterator[RealDaemon]:
    """A daemon with an echo actor, for tests that leave it as they found it."""
    with short_lived_directory() as path:
        config = settings_for(path)
        actors = {"trainer": ("trainer", actor_argv(config, "echo_actor.py", "trainer"))}
        daemon = RealDaemon(config, actors).until(trainer="ready")
        yield daemon
        daemon.close()


Start = Callable[..., RealDaemon]


@pytest.fixture
def start(config: Config) -> Iterator[Start]:
    """Start a daemon with an echo actor as its trainer; options go to the actor."""
    started: list[RealDaemon] = []

    def start(*options: str, settings: Config = config, **others: list[str]) -> RealDaemon:
        actors = {"trainer": ("trainer", actor_argv(settings, "echo_actor.py", "trainer", *options))}
        for name, more in others.items():
            actor = name.replace("_", "-")
            argv = actor_argv(settings, "echo_actor.py", actor, "--role", "sampler", *more)
            actors[actor] = ("sampler", argv)
        started.append(RealDaemon(settings, actors))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def publishing(config: Config) -> Iterator[RealDaemon]:
    """A daemon whose actors publish and serve versions without weights."""
    actors = {
        "trainer": ("trainer", actor_argv(config, "publishing_actors.py", "trainer")),
        "sampler-0": ("sampler", actor_argv(config, "publishing_actors.py", "sampler-0")),
    }
    daemon = RealDaemon(config, actors)
    yield daemon
    daemon.close()
