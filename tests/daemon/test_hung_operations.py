"""An operation that hangs the trainer again and again is quarantined, as one that crashes it."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from loractl.bus.config import Config
from loractl.bus.errors import Quarantined
from loractl.bus.messages import AdapterCreated, CreateAdapter, OptimStep, StepResult
from loractl.tests.daemon.office import LORA, forward_backward
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, actor_argv


@pytest.fixture
def daemon(config: Config) -> Iterator[RealDaemon]:
    strict = replace(config, daemon=replace(config.daemon, stuck_s=0.5, restart_limit=10))
    actors = {"trainer": ("trainer", actor_argv(strict, "stepping_actor.py", "trainer"))}
    daemon = RealDaemon(strict, actors).until(trainer="ready")
    yield daemon
    daemon.close()


def test_an_operation_that_hangs_the_trainer_twice_is_not_tried_a_third_time(daemon: RealDaemon):
    with daemon.client() as client:
        created = client.request(CreateAdapter(name="pirate", lora=LORA), timeout_s=PATIENCE_S)
        assert isinstance(created, AdapterCreated)
        adapter, lane = created.details.adapter, created.lane
        asked = replace(forward_backward(adapter=adapter, lane=lane), loss_config={"hang": 1.0})

        with pytest.raises(Quarantined, match="died again and again with this forward_backward"):
            client.request(asked, timeout_s=PATIENCE_S)
        stepped = client.request(
            OptimStep(adapter=adapter, lane=lane, seq=2, learning_rate=0.1), timeout_s=PATIENCE_S
        )

    assert isinstance(stepped, StepResult)
    said = [json.loads(line) for line in (daemon.layout.logs / "daemon.log").read_text().splitlines()]
    hung = [each["cause"] for each in said if each["event"] == "actor.hung"]
    assert len(hung) == 2
    assert all(cause.endswith("with a pass that never ends") for cause in hung)
