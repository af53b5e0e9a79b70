"""kill -9 of the trainer, of the broker, of all at once, while clients train on their lanes: the same bits as if
nothing had happened, and nothing twice."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loractl import cli
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.errors import ActorRestarting, ActorStopping, DaemonGone, DaemonNotRunning
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DaemonStatus,
    ExportWeights,
    GetStatus,
    GetVersions,
    ListAdapters,
    LoadCheckpoint,
    LoraSpec,
    Message,
    OptimStep,
    PassResult,
    PublishAdapter,
    Receipt,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    VersionTable,
)
from loractl.daemon import launch
from loractl.tests.daemon.real_daemon import gone, until
from loractl.tests.daemon.trained_daemon import (
    PATIENCE_S,
    Place,
    kill_trainer,
    status_of,
    trained_daemon,
    weights_in,
)
from loractl.tests.trainer_actor.loop.harness import pass_over

SPEC = LoraSpec(rank=4, alpha=8.0, seed=1)
ROUNDS = 10


@pytest.fixture
def config() -> Iterator[Config]:
    """Snapshots come in the middle of everything, so that recovery needs them and what came after."""
    with trained_daemon("journal.snapshot_s=0.5") as config:
        yield config


def status(config: Config) -> DaemonStatus:
    with Client(config) as client:
        return status_of(client)


def kill_its_trainer(config: Config) -> None:
    with Client(config) as client:
        kill_trainer(client)


def kill_broker(config: Config) -> None:
    """Its actors notice, and end themselves."""
    now = status(config)
    os.kill(now.pid, signal.SIGKILL)
    start_again(config, now)


def kill_all(config: Config) -> None:
    now = status(config)
    for pid in (now.pid, *(actor.pid for actor in now.actors)):
        os.kill(pid, signal.SIGKILL)
    start_again(config, now)


def start_again(config: Config, before: DaemonStatus) -> None:
    assert all(gone(pid, PATIENCE_S) for pid in (before.pid, *(actor.pid for actor in before.actors)))
    layout = StateLayout(Path(config.state_dir))
    assert until(lambda: not launch.is_held(layout))
    launch.start_detached(config, PATIENCE_S)


def restart(config: Config) -> None:
    assert cli.run(["daemon", "restart", "--state-dir", config.state_dir]) == 0


@dataclass(kw_only=True)
class Trainee(Place):
    """A client that sends every operation under an id of its own, again and again until it has its outcome."""

    config: Config
    name: str
    tenant: TenantId
    said: list[object] = field(default_factory=list)

    def create(self) -> "Trainee":
        created = self.outcome(CreateAdapter(name=self.name, lora=SPEC), "create")
        assert isinstance(created, AdapterCreated), created
        self.adapter, self.lane = created.details.adapter, created.lane
        return self

    def round(self, number: int) -> dict[str, Message]:
        """A window, and now and again what else there is, by request id. Sent at once, in whatever state."""
        bodies: list[Message] = [
            pass_over(number, **self.next()),
            pass_over(number + 100, **self.next()),
            pass_over(number, forward_only=True, **self.next()),
            OptimStep(learning_rate=0.05, **self.next()),  # type: ignore[arg-type]
        ]
        if number % 3 == 1:
            bodies.append(SaveCheckpoint(name=f"at-{number}", **self.next()))  # type: ignore[arg-type]
            bodies.append(PublishAdapter(**self.next()))  # type: ignore[arg-type]
        if number % 4 == 3:
            load = LoadCheckpoint(source=self.adapter, name="at-1", **self.next())  # type: ignore[arg-type]
            bodies.append(load)
        return {f"{self.name}-{number}-{place}": body for place, body in enumerate(bodies)}

    def collect(self, bodies: dict[str, Message], first: Callable[[], None] = lambda: None) -> None:
        """Send all, do something else first, then take every outcome."""
        with contextlib.suppress(DaemonGone), Client(self.config, self.tenant) as client:
            for request, body in bodies.items():
                client.submit(body, request=RequestId(request))
            client.request(GetStatus(), timeout_s=PATIENCE_S)  # the daemon has them all
        first()
        self.said += [essence(self.outcome(body, request)) for request, body in bodies.items()]

    def outcome(self, body: Message, request: str) -> Message:
        layout = StateLayout(Path(self.config.state_dir))
        while True:
            try:
                with Client(self.config, self.tenant) as client:
                    return client.request(body, request=RequestId(request), timeout_s=PATIENCE_S)
            except (DaemonGone, DaemonNotRunning, ActorStopping, ActorRestarting):
                assert until(lambda: launch.is_held(layout), PATIENCE_S)

    def weights(self) -> bytes:
        body = ExportWeights(**self.next())  # type: ignore[arg-type]
        return weights_in(self.outcome(body, f"{self.name}-weights"))


def essence(answer: Message) -> object:
    """What must be equal whatever was killed."""
    match answer:
        case PassResult():
            return answer.logprobs.tobytes(), answer.loss_terms.tobytes(), dict(answer.metrics)
        case StepResult():
            return answer.applied, answer.step, answer.grad_norm, answer.tokens
        case CheckpointSaved():
            return answer.name, answer.step, answer.digest
        case Receipt():
            return answer.record.number, answer.record.step, answer.record.digest
        case StateLoaded():
            return answer.step
        case other:
            raise AssertionError(other)


def test_clients_train_through_kills_of_everything_to_the_same_bits(config: Config) -> None:
    calm = Trainee(config=config, name="calm", tenant=TenantId("calm")).create()
    for number in range(ROUNDS):
        calm.collect(calm.round(number))
    tenants = [TenantId(f"storm-{each}") for each in range(2)]
    storms = [Trainee(config=config, name="storm", tenant=tenant).create() for tenant in tenants]
    kills = {2: kill_its_trainer, 4: kill_all, 6: restart, 7: kill_broker, 8: kill_its_trainer}

    for number in range(ROUNDS):
        bodies = [each.round(number) for each in storms]
        others = threading.Thread(target=storms[1].collect, args=(bodies[1],))
        others.start()
        kill = kills.get(number)
        storms[0].collect(bodies[0], (lambda kill=kill: kill(config)) if kill else lambda: None)
        others.join(PATIENCE_S)

    weights = calm.weights()
    for each in storms:
        assert each.said == calm.said
        assert each.weights() == weights
        with Client(config, each.tenant) as client:
            listed = client.request(ListAdapters(), timeout_s=PATIENCE_S)
            table = client.request(GetVersions(), timeout_s=PATIENCE_S)
        assert isinstance(listed, AdapterList)
        assert isinstance(table, VersionTable)
        assert [details.name for details in listed.adapters] == ["storm"]
        assert [record.number for record in table.records if record.adapter == each.adapter] == [1, 2, 3]
