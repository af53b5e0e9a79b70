"""Several tenants who train side by side, in passes that they share: what is brought back after kill -9 of the trainer
is compared, and proved alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loractl.bus.client import Client, Pending
from loractl.bus.config import Config
from loractl.bus.ids import TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    ExportWeights,
    ForwardBackward,
    LoraSpec,
    Message,
    OptimStep,
    PassResult,
)
from loractl.client.verify_work import verify_adapter
from loractl.daemon import launch
from loractl.tests.daemon.trained_daemon import PATIENCE_S, Place, kill_trainer, weights_in
from loractl.tests.trainer_actor.loop.random_model import VOCAB
from loractl.trainer_actor.compositions import seats

# Nothing is snapshotted: all runs again.
SETTINGS = ("trainer.slots=4", "trainer.pass_tokens=256", "journal.snapshot_s=3600")
# Of the model: large enough for threads to share its sums.
SIZES = {"hidden": 256, "intermediate": 1024}
ROUNDS = 3
SPECS = [
    LoraSpec(rank=4, alpha=8.0, seed=1),
    LoraSpec(rank=8, alpha=8.0, seed=2, train_mlp=False, train_unembed=False),
    LoraSpec(rank=2, alpha=8.0, seed=3),
]


@dataclass(kw_only=True)
class Trainee(Place):
    client: Client
    tenant: TenantId

    @classmethod
    def create(cls, client: Client, name: str, spec: LoraSpec) -> "Trainee":
        tenant = TenantId(name)
        created = client.submit(CreateAdapter(name=name, lora=spec), tenant=tenant).result(PATIENCE_S)
        assert isinstance(created, AdapterCreated), created
        return cls(client=client, tenant=tenant, adapter=created.details.adapter, lane=created.lane)

    def round(self, number: int) -> list[Pending]:
        """A window with losses of both kinds, and a score in the middle of it."""
        bodies: list[Message] = [
            self.datums(number),
            self.datums(number + 100, loss="gspo"),
            self.datums(number, forward_only=True),
            OptimStep(learning_rate=0.02, **self.next()),  # type: ignore[arg-type]
        ]
        return [self.client.submit(body, tenant=self.tenant) for body in bodies]

    def datums(self, seed: int, **changes: object) -> ForwardBackward:
        draw = np.random.default_rng(seed)
        lengths = draw.integers(20, 36, 3)
        total = int(lengths.sum())
        policy = total if "loss" in changes else 0
        plain = {
            "lengths": lengths,
            "tokens": draw.integers(0, VOCAB, total),
            "targets": draw.integers(0, VOCAB, total),
            "weights": (draw.random(total) > 0.3).astype(np.float32),
            "old_logprobs": (-4 + draw.normal(0, 0.1, policy)).astype(np.float32),
            "advantages": draw.normal(0, 1, policy).astype(np.float32),
            "loss": "cross_entropy",
        }
        return ForwardBackward(**{**plain, **changes, **self.next()})  # type: ignore[arg-type]

    def weights(self) -> bytes:
        body = ExportWeights(**self.next())  # type: ignore[arg-type]
        return weights_in(self.client.submit(body, tenant=self.tenant).result(PATIENCE_S))


def train(trainees: Sequence[Trainee], rounds: range) -> list[Message]:
    """All at the same time; every outcome."""
    pending = [each for number in rounds for trainee in trainees for each in trainee.round(number)]
    return [each.result(PATIENCE_S) for each in pending]


def runs_beside(outcomes: Sequence[Message]) -> int:
    """How many pieces shared a pass with others."""
    found = [seat for each in outcomes if isinstance(each, PassResult) for seat in seats(each.composition)]
    assert found
    return sum(len(seat.shape.runs) > 1 for seat in found)


def come_back_to_the_same_bits(config: Config) -> None:
    """After kill -9 of the trainer, and alone in a fresh one."""
    with Client(config) as client:
        trainees = [Trainee.create(client, f"t{place}", spec) for place, spec in enumerate(SPECS)]
        outcomes = train(trainees, range(ROUNDS))
        before = [each.weights() for each in trainees]

        kill_trainer(client)

        assert [each.weights() for each in trainees] == before
        outcomes += train(trainees, range(ROUNDS, ROUNDS + 1))
    assert runs_beside(outcomes)
    logs = [file.read_text() for file in StateLayout(Path(config.state_dir)).logs.iterdir()]
    assert not any("replay.differs" in log or "composition." in log for log in logs)
    for each in trainees[:2]:
        assert verify_adapter(config, str(each.tenant), each.tenant, launch.running_daemon) == 0
