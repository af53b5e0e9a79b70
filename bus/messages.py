"""Every message that crosses a process boundary: requests, replies, events and actor reports.

One frozen dataclass each, flat and keyword-only. `kind` is its name on the wire. Arrays travel as
raw frames beside the header (see `codec`). A message knows nothing about sockets; its envelope
(request id, tenant) is `Envelope`.

Legend: B = datums of a batch, T = all positions of the batch packed end to end, P = prompt tokens,
S = sampled tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .ids import AdapterId, LaneId, RequestId, TenantId

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LossName = Literal["cross_entropy", "importance_sampling", "ppo"]
StopReason = Literal["stop", "length", "abort"]
EngineName = Literal["vllm", "torch"]


class Message:
    """Base of everything on the wire."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message with whose it is and which request it belongs to.

    `last` is False on every part of a streamed answer but the final one.
    """

    request: RequestId
    tenant: TenantId
    body: Message
    last: bool = True


# --- descriptions, used inside messages ----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """What an adapter is made of. `alpha / rank` scales its output (LoRA, arXiv 2106.09685)."""

    rank: int
    alpha: float
    seed: int
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDetails:
    """An adapter as its owner sees it.

    step: optimizer steps committed. version: newest published version, 0 when none.
    checkpoint_step: step of the newest checkpoint, -1 when none was saved.
    served_by: engine that serves its versions, and why, in words; empty until published.
    """

    adapter: AdapterId
    tenant: TenantId
    name: str
    lora: LoraSpec
    step: int
    version: int
    checkpoint_step: int
    parameters: int
    state_bytes: int
    created_unix_s: float
    served_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails:
    """The base model. `path` is where its files lie on the daemon's machine."""

    name: str
    path: str
    family: str
    vocab_size: int
    max_sequence_tokens: int
    parameters: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One immutable published version: enough for any sampler to load it without asking.

    number: 1, 2, … per adapter, never used again. directory: holds PEFT files. digest: SHA-256 of
    the safetensors file, hex. probe_tokens: a short sequence that the trainer scored with these
    weights; probe_logprobs: log p(t_i | t_<i) for i >= 1, one fewer than the tokens, at temperature 1.
    """

    adapter: AdapterId
    tenant: TenantId
    name: str
    number: int
    step: int
    directory: str
    digest: str
    lora: LoraSpec
    modules: int
    probe_tokens: tuple[int, ...]
    probe_logprobs: tuple[float, ...]


# --- requests to the trainer ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAdapter(Message):
    """Register a fresh adapter under a name that this tenant does not use yet."""

    kind: ClassVar[str] = "create_adapter"
    name: str
    lora: LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLane(Message):
    """Open an ordered stream of operations on an adapter. Its first operation has seq 1."""

    kind: ClassVar[str] = "open_lane"
    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackward(Message):
    """Run datums through the model and, unless forward_only, add to the adapter's gradients.

    lengths [B]: positions of each datum; tokens [T], targets [T], weights [T]: the datums end to
    end; position i predicts targets[i]. Losses are sums over positions, never means.
    old_logprobs [T] and advantages [T] belong to importance_sampling and ppo, and are empty for
    cross_entropy; for those two losses, weights [T] masks positions (0 leaves one out).
    loss_config: named settings of the loss, such as clip_low_threshold; unknown ones are refused.
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
    the optimizer, moments and step start at zero.
    """

    kind: ClassVar[str] = "load_checkpoint"
    adapter: AdapterId
    lane: LaneId
    seq: int
    source: AdapterId
    name: str
    with_optimizer: bool = True


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
    """Publish the adapter's present weights as its next version; answered with a receipt."""

    kind: ClassVar[str] = "publish_adapter"
    adapter: AdapterId
    lane: LaneId
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAdapter(Message):
    kind: ClassVar[str] = "delete_adapter"
    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class ListAdapters(Message):
    """All adapters of the tenant, or the one with this name."""

    kind: ClassVar[str] = "list_adapters"
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeModel(Message):
    kind: ClassVar[str] = "describe_model"


# --- requests to a sampler -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """Continue a prompt. adapter None is the base model; version None is the newest published.

    The broker fills in `version` when it admits the request, so "latest" is decided once.
    temperature 0 is greedy. top_k -1 and top_p 1 are off. seed None draws one; sample i of
    num_samples uses seed + i. stop_tokens None stops at the model's own end tokens, an empty
    tuple never stops early. A stop token is part of the output; stop strings are matched in the
    decoded text. prompt_logprobs asks for log p(t_i | t_<i) of the prompt, at temperature 1.
    """

    kind: ClassVar[str] = "sample"
    adapter: AdapterId | None
    version: int | None
    prompt: Ints
    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    num_samples: int = 1
    stop_tokens: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Message):
    """Stop a Sample that is under way; it ends with stop reason "abort"."""

    kind: ClassVar[str] = "abort"
    target: RequestId


# --- requests to the broker itself ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    """Answered by the broker at once: is anyone there?"""

    kind: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo(Message):
    """A no-op that goes all the way to an actor and back, for measurements and doctor."""

    kind: ClassVar[str] = "echo"
    payload: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus(Message):
    kind: ClassVar[str] = "get_status"


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVersions(Message):
    """The current version table and the number of the last event it includes."""

    kind: ClassVar[str] = "get_versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(Message):
    """Stop the daemon: actors drain their mailboxes and answer what waits."""

    kind: ClassVar[str] = "shutdown"


# --- replies -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """The one error reply. `code` is stable, see `errors`."""

    kind: ClassVar[str] = "failed"
    code: str
    message: str
    retryable: bool
    fault: Literal["user", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Message):
    """Not an answer yet: says what an admitted request waits for. Sent with `last` False."""

    kind: ClassVar[str] = "waiting"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """The request was carried out and has nothing more to say."""

    kind: ClassVar[str] = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCreated(Message):
    kind: ClassVar[str] = "adapter_created"
    details: AdapterDetails
    lane: LaneId


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOpened(Message):
    kind: ClassVar[str] = "lane_opened"
    lane: LaneId
    details: AdapterDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult(Message):
    """Answer to ForwardBackward. logprobs [T]: log p(targets[i] | tokens[:i+1]), at temperature 1.

    loss_terms [T]: each position's part of the summed loss. metrics: `name:reduction` keys, always
    with `loss:sum`.
    """

    kind: ClassVar[str] = "pass_result"
    logprobs: Floats
    loss_terms: Floats
    metrics: Mapping[str, float]


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
class StateLoaded(Message):
    """Answer to LoadCheckpoint and ImportWeights."""

    kind: ClassVar[str] = "state_loaded"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionWritten(Message):
    """The trainer's answer to PublishAdapter. The broker turns it into a `Receipt`."""

    kind: ClassVar[str] = "version_written"
    record: VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """What a client reads after PublishAdapter: the version is being served, by whom, how exactly.

    sampler and engine are empty when the daemon runs without samplers. probe_max_abs_diff: largest
    difference between trainer and sampler logprobs on the probe, None without a sampler.
    """

    kind: ClassVar[str] = "receipt"
    record: VersionRecord
    sampler: str
    engine: str
    engine_reason: str
    modules_bound: int
    probe_max_abs_diff: float | None
    waited_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterList(Message):
    kind: ClassVar[str] = "adapter_list"
    adapters: tuple[AdapterDetails, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescribed(Message):
    kind: ClassVar[str] = "model_described"
    model: ModelDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleChunk(Message):
    """Part of a streamed answer: tokens just sampled for sequence `index`."""

    kind: ClassVar[str] = "sample_chunk"
    index: int
    tokens: Ints
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult(Message):
    """The whole answer to Sample: sequences end to end, as lengths [N], tokens [S], logprobs [S].

    logprobs are log_softmax(logits / temperature) of the sampled tokens (temperature 1 for greedy).
    prompt_logprobs [P] (first entry NaN) or empty. version 0 is the base model.
    """

    kind: ClassVar[str] = "sample_result"
    version: int
    engine: EngineName
    lengths: Ints
    tokens: Ints
    logprobs: Floats
    texts: tuple[str, ...]
    stop_reasons: tuple[StopReason, ...]
    prompt_logprobs: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Message):
    kind: ClassVar[str] = "pong"
    daemon_version: str
    uptime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoed(Message):
    kind: ClassVar[str] = "echoed"
    payload: Bytes


ActorRole = Literal["trainer", "sampler", "bridge"]
ActorPhase = Literal["starting", "ready", "stopping", "restarting", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One actor as the daemon sees it. waiting: requests handed to it and not yet answered."""

    actor: str
    role: ActorRole
    phase: ActorPhase
    pid: int
    restarts: int
    rss_bytes: int
    waiting: int
    details: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus(Message):
    kind: ClassVar[str] = "daemon_status"
    daemon_version: str
    pid: int
    uptime_s: float
    state_dir: str
    base_model: str
    http: str
    actors: tuple[ActorStatus, ...]
    adapters: int
    versions: int
    last_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTable(Message):
    kind: ClassVar[str] = "version_table"
    last_event: int
    records: tuple[VersionRecord, ...]


# --- events: hints with a gapless number; the table is the truth ---------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPublished(Message):
    kind: ClassVar[str] = "adapter_published"
    number: int
    record: VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRetired(Message):
    """Samplers finish what is in flight on it, remove it, and report `VersionReleased`."""

    kind: ClassVar[str] = "version_retired"
    number: int
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDeleted(Message):
    kind: ClassVar[str] = "adapter_deleted"
    number: int
    adapter: AdapterId


# --- actors to broker, and back ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorReady(Message):
    """An actor has loaded everything and takes requests. A trainer brings what its disk holds."""

    kind: ClassVar[str] = "actor_ready"
    actor: str
    role: ActorRole
    pid: int
    details: str
    versions: tuple[VersionRecord, ...] = ()
    adapters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """Sent every second from a thread of its own. progress: grows whenever the loop turns.

    busy_s: how long the loop has been in its present turn.
    """

    kind: ClassVar[str] = "heartbeat"
    actor: str
    progress: int
    busy_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionServed(Message):
    """A sampler serves this version from now on, or says why it cannot (`error` not empty)."""

    kind: ClassVar[str] = "version_served"
    actor: str
    adapter: AdapterId
    version: int
    engine: EngineName
    engine_reason: str
    modules_bound: int
    probe_max_abs_diff: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReleased(Message):
    """A sampler has let go of a retired version."""

    kind: ClassVar[str] = "version_released"
    actor: str
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropVersion(Message):
    """Broker to trainer: no sampler holds this version any more; delete its directory."""

    kind: ClassVar[str] = "drop_version"
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Message):
    """Broker to an actor: finish what is in hand, answer what waits, then exit."""

    kind: ClassVar[str] = "drain"
