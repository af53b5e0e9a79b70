"""A disk that damages what an unload left: the adapter comes from what is behind it to the same bits."""

import os
import signal
from pathlib import Path

from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.ids import AdapterId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    Done,
    ExportWeights,
    LaneOpened,
    LoraSpec,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    StepResult,
    UnloadAdapter,
)
from loractl.tests.daemon.real_daemon import gone
from loractl.tests.daemon.trained_daemon import PATIENCE_S, Place, trained_daemon, trainer_of, weights_in
from loractl.tests.trainer_actor.loop.harness import pass_over

SPEC = LoraSpec(rank=4, alpha=8.0, seed=1)


def asked(client: Client, body: Message) -> Message:
    return client.request(body, timeout_s=PATIENCE_S)


def create(client: Client, name: str) -> Place:
    created = asked(client, CreateAdapter(name=name, lora=SPEC))
    assert isinstance(created, AdapterCreated)
    return Place(adapter=created.details.adapter, lane=created.lane)


def gather(client: Client, place: Place, data: int) -> None:
    assert isinstance(asked(client, pass_over(data, **place.next())), PassResult)


def step(client: Client, place: Place) -> None:
    stepped = asked(client, OptimStep(learning_rate=0.05, **place.next()))  # type: ignore[arg-type]
    assert isinstance(stepped, StepResult)


def leave_and_come_back(client: Client, place: Place) -> None:
    assert isinstance(asked(client, UnloadAdapter(adapter=place.adapter)), Done)
    opened = asked(client, OpenLane(adapter=place.adapter))
    assert isinstance(opened, LaneOpened)
    place.lane, place.seq = opened.lane, 0


def damage_snapshots(config: Config, adapter: AdapterId) -> None:
    files = list(StateLayout(Path(config.state_dir)).snapshots(adapter).glob("*/main.safetensors"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"?")


def weights(client: Client, place: Place) -> bytes:
    return weights_in(asked(client, ExportWeights(**place.next())))  # type: ignore[arg-type]


def test_gradients_that_an_unload_took_stay_away_when_its_snapshot_is_damaged() -> None:
    with trained_daemon("journal.snapshot_s=3600") as config, Client(config) as client:
        poet, calm = create(client, "poet"), create(client, "calm")
        gather(client, poet, 7)
        leave_and_come_back(client, poet)
        for place in (poet, calm):
            gather(client, place, 1)
            step(client, place)

        trainer = trainer_of(client).pid
        damage_snapshots(config, poet.adapter)
        os.killpg(trainer, signal.SIGKILL)
        assert gone(trainer, PATIENCE_S)

        for place in (poet, calm):
            gather(client, place, 2)
            step(client, place)
        assert weights(client, poet) == weights(client, calm)
