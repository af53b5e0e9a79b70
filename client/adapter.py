"""An adapter in a client's hands: its lane, and the operations sent along it.

Operations are numbered and run in the order they were sent, also through restarts. Only unloading, or a
restart where the daemon keeps no journal, ends the lane (`LaneLost`, `ActorRestarting`): `reopen` gets a
new one and says at which step the adapter is.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from ..bus.client import Client
from ..bus.ids import AdapterId, LaneId
from ..bus.messages import (
    AdapterDetails,
    CheckpointSaved,
    ForwardBackward,
    ImportWeights,
    LaneOpened,
    LoadCheckpoint,
    LossName,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    PublishAdapter,
    Receipt,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
)
from .datums import Datum, Packed, pack
from .futures import Future, ReplyT, ask


class _Place(TypedDict):
    """Where an operation stands in its adapter's order."""

    adapter: AdapterId
    lane: LaneId
    seq: int


class Adapter:
    def __init__(self, client: Client, details: AdapterDetails, lane: LaneId) -> None:
        """details: the adapter as it was when the lane was opened."""
        self._client = client
        self._lane = lane
        self._sent = 0
        self.details = details

    @property
    def id(self) -> AdapterId:
        return self.details.adapter

    @property
    def name(self) -> str:
        return self.details.name

    def forward_backward(
        self,
        datums: Sequence[Datum] | Packed,
        loss: LossName = "cross_entropy",
        *,
        loss_config: Mapping[str, float] | None = None,
        forward_only: bool = False,
    ) -> Future[PassResult]:
        """Run datums through the model and add to the gradients; the loss is a sum over positions.

        loss_config: settings of the loss, such as `clip_low_threshold` of ppo, as they are: they
        replace what a scaled `Packed` brings. forward_only: only score the datums.
        """
        packed = datums if isinstance(datums, Packed) else pack(datums, loss)
        body = ForwardBackward(
            **self._next(),
            lengths=packed.lengths,
            tokens=packed.tokens,
            targets=packed.targets,
            weights=packed.weights,
            old_logprobs=packed.old_logprobs,
            advantages=packed.advantages,
            loss=loss,
            loss_config={**packed.loss_config, **(loss_config or {})},
            forward_only=forward_only,
        )
        return self._submit(body, PassResult)

    def optim_step(
        self,
        learning_rate: float,
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        grad_clip_norm: float = 0.0,
    ) -> Future[StepResult]:
        """Apply the gathered gradients with AdamW, and forget them. A clip norm of 0 is off."""
        body = OptimStep(
            **self._next(),
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_clip_norm=grad_clip_norm,
        )
        return self._submit(body, StepResult)

    def save(self, name: str, *, overwrite: bool = False) -> Future[CheckpointSaved]:
        """Write the whole training state under a name."""
        return self._submit(SaveCheckpoint(**self._next(), name=name, overwrite=overwrite), CheckpointSaved)

    def load(
        self, name: str, *, source: AdapterId | None = None, with_optimizer: bool = True
    ) -> Future[StateLoaded]:
        """Go back to a checkpoint, of this adapter or of another. Without the optimizer it starts anew."""
        body = LoadCheckpoint(
            **self._next(), source=source or self.id, name=name, with_optimizer=with_optimizer
        )
        return self._submit(body, StateLoaded)

    def import_weights(self, config_json: str, safetensors: bytes) -> Future[StateLoaded]:
        """Replace the weights by those of a PEFT directory's two files."""
        body = ImportWeights(
            **self._next(), config_json=config_json, safetensors=np.frombuffer(safetensors, np.uint8)
        )
        return self._submit(body, StateLoaded)

    def publish(self) -> Future[Receipt]:
        """Publish the present weights as the next version; the receipt comes once it is served."""
        return self._submit(PublishAdapter(**self._next()), Receipt)

    def reopen(self) -> AdapterDetails:
        """Get a new lane, waiting for a trainer that restarts. What was on the old one is lost."""
        opened = ask(self._client, OpenLane(adapter=self.id), LaneOpened)
        self._lane, self._sent, self.details = opened.lane, 0, opened.details
        return opened.details

    def _next(self) -> _Place:
        return {"adapter": self.id, "lane": self._lane, "seq": self._sent + 1}

    def _submit(self, body: Message, expected: type[ReplyT]) -> Future[ReplyT]:
        """A number is used up only once its operation is on its way."""
        pending = self._client.submit(body)
        self._sent += 1
        return Future(pending, expected)
