"""A daemon whose trainer has two ranks: what it saves one process reads, and the other way round; a rank that is
killed costs a pause and no bit; and nothing is left when it stops."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from loractl.bus.client import Client, Pending
from loractl.bus.config import Config
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import (
    AdapterCreated,
    CheckpointSaved,
    CreateAdapter,
    ExportWeights,
    LaneOpened,
    LoadCheckpoint,
    LoraSpec,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    WeightsExported,
)
from loractl.daemon import launch
from loractl.tests.daemon.real_daemon import gone
from loractl.tests.daemon.trained_daemon import PATIENCE_S, Place, trained_daemon, trainer_of, weights_in
from loractl.tests.trainer_actor.loop.harness import (
    Adapter,
    Office,
    create,
    make_config,
    pass_over,
    start,
    stop,
)

SPEC = LoraSpec(rank=4, alpha=8.0, seed=7)


@pytest.fixture
def config() -> Iterator[Config]:
    """For a daemon with two ranks; nothing is snapshotted, so all runs again."""
    with trained_daemon("trainer.data_parallel=2", "journal.snapshot_s=3600", starts=False) as config:
        yield config


@contextlib.contextmanager
def one_process(config: Config) -> Iterator[Office]:
    """A trainer of one rank on the same state directory."""
    office = Office(make_config(Path(config.state_dir), Path(config.model.path)))
    trainer, _ = start(office)
    yield office
    stop(office, trainer)
    office.close()


@dataclass(kw_only=True)
class Trainee(Place):
    client: Client

    @classmethod
    def create(cls, client: Client, name: str) -> "Trainee":
        created = client.request(CreateAdapter(name=name, lora=SPEC), timeout_s=PATIENCE_S)
        assert isinstance(created, AdapterCreated)
        return cls(client=client, adapter=created.details.adapter, lane=created.lane)

    @classmethod
    def open(cls, client: Client, adapter: AdapterId) -> "Trainee":
        opened = client.request(OpenLane(adapter=adapter), timeout_s=PATIENCE_S)
        assert isinstance(opened, LaneOpened)
        return cls(client=client, adapter=adapter, lane=opened.lane)

    def ask(self, kind: type[Message], **fields: object) -> Message:
        return self.client.request(kind(**self.next(), **fields), timeout_s=PATIENCE_S)

    def windows(self, count: int, *, kill: psutil.Process | None = None) -> bytes:
        """Train so many; the weights behind them. kill: when the first is answered. What comes after it cannot be
        done without that process."""
        pending = self.submitted(range(count // 2))
        pending[0].result(PATIENCE_S)
        if kill is not None:
            kill.send_signal(signal.SIGKILL)
            assert gone(kill.pid, PATIENCE_S)
        pending += self.submitted(range(count // 2, count))
        answers = [each.result(PATIENCE_S) for each in pending]
        assert [type(each) for each in answers] == [PassResult, StepResult] * count
        return self.weights()

    def submitted(self, numbers: range) -> list[Pending]:
        bodies: list[Message] = []
        for number in numbers:
            bodies.append(pass_over(number, **self.next()))
            bodies.append(OptimStep(learning_rate=0.02, **self.next()))  # type: ignore[arg-type]
        return [self.client.submit(body) for body in bodies]

    def weights(self) -> bytes:
        return weights_in(self.ask(ExportWeights))


def ranks(client: Client) -> list[psutil.Process]:
    """The trainer's processes, its own first."""
    trainer = trainer_of(client)
    assert "2 ranks" in trainer.details
    own = psutil.Process(trainer.pid)
    return [own, *own.children()]


def weights_of(adapter: Adapter) -> bytes:
    return weights_in(adapter.run(ExportWeights, WeightsExported))


@pytest.mark.timeout(900)
def test_saves_of_any_size_load_at_another_and_a_killed_rank_costs_no_bit(config: Config) -> None:
    with one_process(config) as office:
        adapter = create(office, "moves")
        adapter.forward_backward(1)
        adapter.step()
        adapter.run(SaveCheckpoint, CheckpointSaved, name="one", overwrite=False)
        of_one = weights_of(adapter)

    launch.start_detached(config, PATIENCE_S)
    with Client(config) as client:
        moves = Trainee.open(client, adapter.id)
        moves.ask(LoadCheckpoint, source=adapter.id, name="one", with_optimizer=True)
        assert moves.weights() == of_one
        of_two = moves.windows(2)
        moves.ask(SaveCheckpoint, name="two", overwrite=False)

        undisturbed = Trainee.create(client, "undisturbed").windows(4)
        before = ranks(client)
        assert len(before) == 2
        assert Trainee.create(client, "killed").windows(4, kill=before[1]) == undisturbed
        after = ranks(client)
        assert len(after) == 2
        assert not {each.pid for each in before} & {each.pid for each in after}
    launch.stop(config)
    assert all(gone(each.pid, PATIENCE_S) for each in [*before, *after])

    with one_process(config) as office:
        opened = office.ask(OpenLane(adapter=adapter.id), LaneOpened, LOCAL_TENANT)
        adapter = Adapter(office, opened.details, opened.lane)
        loaded = adapter.run(LoadCheckpoint, StateLoaded, source=adapter.id, name="two", with_optimizer=True)
        assert loaded.step == 3
        assert weights_of(adapter) == of_two
