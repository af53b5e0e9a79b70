"""Operations on an adapter's lane, and their answers.

Legend: B = datums of a batch, T = all positions of the batch packed end to end, K = targets of a position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..ids import AdapterId, LaneId, TenantId
from .base import LATE, Bytes, Floats, Ints, LossName, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackward(Message):
    """Run datums through the model and, unless forward_only, add to the adapter's gradients.

    lengths [B]: positions of each datum; tokens [T], targets [T], weights [T]: the datums end to
    end; position i predicts targets[i]. Losses are sums over positions, never means. For
    cross_entropy, targets and weights may be [T, K]: K weighted targets a position, of any sign.
    old_logprobs [T] and advantages [T] belong to the other losses, and are empty for
    cross_entropy; for those losses, weights [T] masks positions (0 leaves one out).
    ratio_mask [T] belongs to gspo: positions other than 0 make the sequence's ratio; empty stands for
    those of weight other than 0 that have an old_logprob or an advantage.
    loss_config: named settings of the loss, such as clip_low_threshold; unknown ones are refused.
    composition [bytes]: of the passes in which it ran before (see `PassResult`), to run in the same again.
    The broker fills it in from its journal; clients of other machines may not.
    """

    kind: ClassVar[str] = "forward_backward"
    adapter: AdapterId
    lane: LaneId
    seq: int
    lengths: Ints
    tokens: Ints
    targets: Ints
    weights: Floats
    old_logprobs: Floats
    advantages: Floats
    loss: LossName
    loss_config: Mapping[str, float] = field(default_factory=dict)
    forward_only: bool = False
    ratio_mask: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    composition: Bytes = field(default_factory=lambda: np.zeros(0, dtype=np.uint8), metadata=LATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimStep(Message):
    """Apply AdamW to the gradients gathered since the last step, then zero them.

    Decoupled weight decay (arXiv 1711.05101). grad_clip_norm 0 leaves gradients unclipped; else
    the global norm over this adapter's gradients. Without any gradient nothing changes, and the
    answer says so (`applied` False).
    """

    kind: ClassVar[str] = "optim_step"
    adapter: AdapterId
    lane: LaneId
    seq: int
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCheckpoint(Message):
    """Write the adapter's whole training state under a name of its own."""

    kind: ClassVar[str] = "save_checkpoint"
    adapter: AdapterId
    lane: LaneId
    seq: int
    name: str
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCheckpoint(Message):
    """Replace the adapter's state by a checkpoint of an adapter of the same tenant.

    source: the adapter that saved it (may be this one). Pending gradients are dropped. Without
    the optimizer, moments and step start at zero. source_owner: the tenant of the source when that
    is another one; whoever sets it has checked that the checkpoint was made public.
    """

    kind: ClassVar[str] = "load_checkpoint"
    adapter: AdapterId
    lane: LaneId
    seq: int
    source: AdapterId
    name: str
    with_optimizer: bool = True
    source_owner: TenantId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadVersion(Message):
    """Replace the adapter's weights by those of a published version; the optimizer starts anew.

    source, source_owner: as in `LoadCheckpoint`. Answered with StateLoaded, step 0.
    """

    kind: ClassVar[str] = "load_version"
    adapter: AdapterId
    lane: LaneId
    seq: int
    source: AdapterId
    version: int
    source_owner: TenantId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseOperation(Message):
    """Use up a number of the lane for an operation that its sender knows to be wrong.

    It waits for its turn like any other and is then answered with this failure (of the caller's
    doing), so that what was sent behind it runs.
    """

    kind: ClassVar[str] = "refuse_operation"
    adapter: AdapterId
    lane: LaneId
    seq: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWeights(Message):
    """Hand out the adapter's present weights as PEFT files; nothing is published."""

    kind: ClassVar[str] = "export_weights"
    adapter: AdapterId
    lane: LaneId
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestState(Message):
    """Tell the digest of the adapter's whole training state, for comparing it with another's."""

    kind: ClassVar[str] = "digest_state"
    adapter: AdapterId
    lane: LaneId
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportWeights(Message):
    """Replace the adapter's weights by the files of a PEFT directory; the optimizer starts anew.

    config_json: adapter_config.json as text; safetensors [bytes]: adapter_model.safetensors.
    """

    kind: ClassVar[str] = "import_weights"
    adapter: AdapterId
    lane: LaneId
    seq: int
    config_json: str
    safetensors: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAdapter(Message):
    """Publish the adapter's present weights as its next version; answered with a receipt.

    held: the version stays until DeleteVersion, however many newer ones there are
    (`publish.keep_versions` neither counts nor retires it), also after a restart.
    """

    kind: ClassVar[str] = "publish_adapter"
    adapter: AdapterId
    lane: LaneId
    seq: int
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult(Message):
    """Answer to ForwardBackward. logprobs: log p(targets[i] | tokens[:i+1]), at temperature 1.

    loss_terms: each one's part of the summed loss. Both in the shape of targets, [T] or [T, K].
    metrics: `name:reduction` keys, always with `loss:sum`.
    composition [bytes]: what else was in its passes, where that changes bits; empty elsewhere, and for
    clients of other machines. For the trainer alone to read (`trainer_actor/compositions`).
    """

    kind: ClassVar[str] = "pass_result"
    logprobs: Floats
    loss_terms: Floats
    metrics: Mapping[str, float]
    composition: Bytes = field(default_factory=lambda: np.zeros(0, dtype=np.uint8), metadata=LATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult(Message):
    """Answer to OptimStep. grad_norm: before clipping. tokens: positions since the last step."""

    kind: ClassVar[str] = "step_result"
    applied: bool
    step: int
    grad_norm: float
    learning_rate: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Message):
    kind: ClassVar[str] = "checkpoint_saved"
    adapter: AdapterId
    name: str
    step: int
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsExported(Message):
    """Answer to ExportWeights: adapter_config.json as text, adapter_model.safetensors [bytes]."""

    kind: ClassVar[str] = "weights_exported"
    config_json: str
    safetensors: Bytes
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDigest(Message):
    """Answer to DigestState. tokens: positions since the last step. pieces: SHA-256 in hex of those that are there:
    main (the weights in float32), gradients that wait for a step, exp_avg and exp_avg_sq (Adam's moments)."""

    kind: ClassVar[str] = "state_digest"
    step: int
    tokens: int
    pieces: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLoaded(Message):
    """Answer to LoadCheckpoint, LoadVersion and ImportWeights."""

    kind: ClassVar[str] = "state_loaded"
    step: int
