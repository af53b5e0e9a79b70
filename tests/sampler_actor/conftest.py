"""One tiny model and a few versions for all tests of the sampler: written once per session."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from loractl.bus.config import set_process_environment
from loractl.bus.messages import VersionRecord
from loractl.sampler_actor.environment import thread_environment
from loractl.tests.sampler_actor.tiny import ALICE, BOB, Reference, make_model, make_version

# Before anything imports torch.
set_process_environment(thread_environment(1))

Result = TypeVar("Result")
Run = Callable[[Coroutine[object, object, Result]], Result]


@pytest.fixture(scope="session")
def run() -> Iterator[Run[object]]:
    """Run a coroutine in the one event loop that all engines of the session live in."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def versions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, VersionRecord]:
    """alice-1 and alice-2 are two versions of one adapter, bob-1 has another rank and attention only."""
    root = tmp_path_factory.mktemp("versions")
    return {
        "alice-1": make_version(tiny_model, root / "alice-1", adapter=ALICE, number=1, rank=4, seed=1),
        "alice-2": make_version(tiny_model, root / "alice-2", adapter=ALICE, number=2, rank=4, seed=2),
        "bob-1": make_version(
            tiny_model, root / "bob-1", adapter=BOB, number=1, rank=8, seed=3, train_mlp=False
        ),
        "bob-2": make_version(
            tiny_model, root / "bob-2", adapter=BOB, number=2, rank=2, seed=4, train_unembed=True
        ),
    }


@pytest.fixture(scope="session")
def reference(tiny_model: Path, versions: dict[str, VersionRecord]) -> Reference:
    return Reference(tiny_model, list(versions.values()))
