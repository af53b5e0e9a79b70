"""A state directory, a tiny model and the daemon's end of the trainer's link."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loractl.tests.trainer_actor.loop.harness import (
    Office,
    Trainer,
    make_config,
    start,
    stop,
)
from loractl.tests.trainer_actor.loop.random_model import make_model


@pytest.fixture(scope="session")
def loop_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def open_office(loop_model: Path) -> Iterator[Callable[..., Office]]:
    """Open the daemon's end on a fresh state directory, with settings of the test's own."""
    opened: list[Office] = []

    def open_one(*overrides: str) -> Office:
        # Short, because a socket's path may have about 100 bytes.
        state_dir = Path(tempfile.mkdtemp(prefix="lo"))
        opened.append(Office(make_config(state_dir, loop_model, *overrides)))
        return opened[-1]

    yield open_one
    for office in opened:
        office.close()
        shutil.rmtree(office.layout.root)


@pytest.fixture
def serve(open_office: Callable[..., Office]) -> Iterator[Callable[..., Office]]:
    """An office with a trainer behind it, which ends with the test."""
    started: list[tuple[Office, Trainer]] = []

    def serve_one(*overrides: str) -> Office:
        office = open_office(*overrides)
        trainer, _ = start(office)
        started.append((office, trainer))
        return office

    yield serve_one
    for office, trainer in started:
        stop(office, trainer)
