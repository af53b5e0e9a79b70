"""An adapter that kills every trainer which brings it back is left alone, and nobody else stands still."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from loractl.bus.client import Client
from loractl.bus.errors import RecoveryFailed
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    DaemonStatus,
    GetStatus,
    OptimStep,
    PassResult,
    StepResult,
)
from loractl.tests.daemon.conftest import settings_for, short_lived_directory
from loractl.tests.daemon.office import LORA, forward_backward
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, actor_argv


@pytest.fixture
def daemon() -> Iterator[RealDaemon]:
    with short_lived_directory() as outside:
        config = settings_for(outside / "s")
        config = replace(config, daemon=replace(config.daemon, restart_limit=5))
        actors = {"trainer": ("trainer", actor_argv(config, "stepping_actor.py", "trainer"))}
        daemon = RealDaemon(config, actors).until(trainer="ready")
        yield daemon
        daemon.close()


def create(client: Client, name: str) -> AdapterCreated:
    created = client.request(CreateAdapter(name=name, lora=LORA), timeout_s=PATIENCE_S)
    assert isinstance(created, AdapterCreated)
    return created


def train(client: Client, created: AdapterCreated, **loss_config: float) -> None:
    asked = forward_backward(adapter=created.details.adapter, lane=created.lane)
    passed = client.request(replace(asked, loss_config=loss_config), timeout_s=PATIENCE_S)
    assert isinstance(passed, PassResult)


def step(created: AdapterCreated) -> OptimStep:
    return OptimStep(adapter=created.details.adapter, lane=created.lane, seq=2, learning_rate=0.1)


def kill_trainer(client: Client) -> None:
    status = client.request(GetStatus(), timeout_s=PATIENCE_S)
    assert isinstance(status, DaemonStatus)
    assert status.actors[0].pid, "0 would be this process's own group"
    os.killpg(status.actors[0].pid, signal.SIGKILL)


def test_everybody_else_goes_on_and_its_owner_reads_what_to_do(daemon: RealDaemon) -> None:
    with daemon.client() as client:
        good, bad = create(client, "good"), create(client, "bad")
        train(client, good)
        train(client, bad, dies_again=1.0)

        kill_trainer(client)
        deadly, harmless = client.submit(step(bad)), client.submit(step(good))

        assert isinstance(harmless.result(PATIENCE_S), StepResult)
        with pytest.raises(RecoveryFailed, match="it is left alone"):
            deadly.result(PATIENCE_S)
    assert daemon.process.poll() is None
