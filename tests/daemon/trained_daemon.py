"""A daemon with a real trainer on a random model, the place of a client on its lane, and how the trainer is killed."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.errors import DaemonNotRunning
from loractl.bus.ids import NO_ADAPTER, NO_LANE, AdapterId, LaneId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import ActorStatus, DaemonStatus, GetStatus, Message, WeightsExported
from loractl.daemon import launch
from loractl.tests.daemon.real_daemon import say_logs
from loractl.tests.trainer_actor.loop.harness import make_config
from loractl.tests.trainer_actor.loop.random_model import make_model

PATIENCE_S = 240.0


@contextlib.contextmanager
def trained_daemon(*settings: str, starts: bool = True, **sizes: int) -> Iterator[Config]:
    """A daemon without samplers, on a directory of its own; it is ended, and nothing of it is left. starts: or its
    settings alone, for a test that starts it. sizes: of the model."""
    root = Path(tempfile.mkdtemp(prefix="lo"))
    model = make_model(root / "model", **sizes)
    config = make_config(root / "s", model, "sampler.count=0", "daemon.restart_first_s=0.05", *settings)
    try:
        if starts:
            launch.start_detached(config, PATIENCE_S)
        yield config
    finally:
        with contextlib.suppress(DaemonNotRunning):
            launch.stop(config)
        say_logs(StateLayout(Path(config.state_dir)))
        shutil.rmtree(root)


def status_of(client: Client) -> DaemonStatus:
    status = client.request(GetStatus(), timeout_s=PATIENCE_S)
    assert isinstance(status, DaemonStatus)
    return status


def trainer_of(client: Client) -> ActorStatus:
    [trainer] = [actor for actor in status_of(client).actors if actor.actor == "trainer"]
    assert trainer.pid, "0 would be this process's own group"
    return trainer


def kill_trainer(client: Client) -> None:
    os.killpg(trainer_of(client).pid, signal.SIGKILL)


@dataclass(kw_only=True)
class Place:
    """A client's place on its adapter's lane."""

    adapter: AdapterId = NO_ADAPTER
    lane: LaneId = NO_LANE
    seq: int = 0

    def next(self) -> dict[str, object]:
        """Where the next operation stands."""
        self.seq += 1
        return {"adapter": self.adapter, "lane": self.lane, "seq": self.seq}


def weights_in(answer: Message) -> bytes:
    assert isinstance(answer, WeightsExported), answer
    return answer.safetensors.tobytes()
