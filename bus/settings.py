"""Every setting there is: one frozen tree. Where values come from, and who checks them, is `config`."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The base model. name: as clients call it; path: a Hugging Face directory, default the name. dtype,
    device: "auto" is the type that the model was saved in, and CUDA where there is one. max_sequence_tokens:
    the longest sequence that is trained or sampled."""

    name: str = ""
    path: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_sequence_tokens: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """slots, device_bytes: how many adapters, and how many bytes of their states, lie on the device at
    one time; device_bytes 0 is what suits the device. Others wait in host_bytes of host memory, and
    behind it on disk, in disk_bytes. An adapter that nothing was asked of for sink_after_s goes to disk as
    soon as the trainer has nothing else to do. With one slot, a long batch that began has it to its end.
    keep_checkpoints: so many of an adapter's checkpoints stay, the newest; a save deletes older ones, whatever
    they are called. 0 is all. max_rank: the highest rank that an adapter may have.

    data_parallel, tensor_parallel: the trainer is data_parallel times tensor_parallel processes ("ranks"), on
    CUDA of one device each. Each replica of the base model takes whole sequences of a pass, and lies on
    tensor_parallel ranks.

    threads 0: one fewer than the machine has, shared by the ranks, at least 1. pass_tokens: positions that run
    through the model at one time, on all ranks together, 0 for what suits model and device; a longer sequence
    runs alone. logits_chunk:
    positions whose logits exist at one time. fuse: several adapters share a pass. gather_s: how long a
    pass waits at most for adapters that shared the one before. recompute: activations are computed
    again on the way back (gradient checkpointing), which takes less memory and more time. deterministic: on
    CUDA each sum has a fixed order, so that what runs again after a crash, or to be verified, is meant to have the same
    bits, as it has on a CPU anyway; attention's way back is slower so.

    window "exclusive": the trainer serves one adapter from its first forward_backward to its
    optim_step, but waits for its next operation no longer than window_lease_s. lane_gap_timeout_s: how long
    operations of a lane wait for an earlier one that has not come, before they fail."""

    slots: int = 64
    device_bytes: int = 0
    host_bytes: int = 8 * 2**30
    disk_bytes: int = 64 * 2**30
    sink_after_s: float = 600.0
    keep_checkpoints: int = 0
    max_rank: int = 32
    data_parallel: int = 1
    tensor_parallel: int = 1
    threads: int = 0
    pass_tokens: int = 0
    logits_chunk: int = 256
    fuse: bool = True
    gather_s: float = 0.01
    recompute: bool = False
    deterministic: bool = False
    window: Literal["shared", "exclusive"] = "shared"
    window_lease_s: float = 30.0
    lane_gap_timeout_s: float = 120.0

    @property
    def ranks(self) -> int:
        return self.data_parallel * self.tensor_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessConfig:
    """Tenants take turns on measured trainer time. weights: shares of it, as "alice=2, bob=0.5";
    others have 1. priorities: as "alice=1"; others have 0, and a higher one goes first.
    quantum_ms: trainer time of a turn, at weight 1."""

    weights: str = ""
    priorities: str = ""
    quantum_ms: float = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotasConfig:
    """What one tenant may have at one time; 0 is no bound. Beyond it requests wait, and are told why,
    adapter creations for at most wait_s. adapters, state_bytes: registered adapters, and the training
    states of all of them. checkpoint_bytes: what is kept on disk until it is deleted, saved training states and
    published versions (Tinker's sampler weights) together; a save or publish beyond it is refused. External
    weights count by themselves, up to as many bytes again. queued_tokens: positions of its forward_backwards
    that the trainer holds. held_bytes: requests that wait in the broker, and what samples over HTTP take while they
    are under way; a request beyond it is refused. sessions: of Tinker clients, until they finish or expire.
    requests_per_s, request_bytes_per_s: over HTTP, what comes faster for more than some seconds is told
    to come again later (429); polls for results and heartbeats do not count."""

    adapters: int = 0
    state_bytes: int = 0
    checkpoint_bytes: int = 0
    queued_tokens: int = 4 * 2**20
    held_bytes: int = 1 * 2**30
    sessions: int = 1024
    wait_s: float = 60.0
    requests_per_s: float = 0.0
    request_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalConfig:
    """What outlives every process. enabled: false keeps requests in memory only, for measurements.

    An adapter is snapshotted once its oldest operation that no snapshot holds is snapshot_s old, or once
    such operations have snapshot_bytes: this bounds what runs again after a crash. keep_s, keep_bytes:
    operations older than their adapter's newest snapshot stay for so long, and for so many bytes of all of
    them, as its history; then the oldest go. retry_quarantined: at this start, bring back once more the
    adapters that the trainer died of again and again."""

    enabled: bool = True
    snapshot_s: float = 30.0
    snapshot_bytes: int = 64 * 2**20
    keep_s: float = 7 * 24 * 3600.0
    keep_bytes: int = 16 * 2**30
    retry_quarantined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """count: how many samplers run, each with an engine of its own; 0 is none. engine "auto" is vllm where it
    imports, and torch for what vllm cannot serve exactly. threads: of each one, on a CPU.

    max_loras: versions that one step of an engine may mix; max_loaded: versions in memory at one time.
    max_concurrent: jobs that an engine has at one time; others wait. max_batched_tokens: positions of a step.
    kv_cache_bytes counts on a CPU only, gpu_memory_utilization (vllm's share of the device) on CUDA only."""

    count: int = 1
    engine: Literal["auto", "vllm", "torch"] = "auto"
    threads: int = 1
    max_loras: int = 4
    max_loaded: int = 32
    max_concurrent: int = 32
    max_batched_tokens: int = 1024
    kv_cache_bytes: int = 256 * 2**20
    gpu_memory_utilization: float = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    """keep_versions: newest versions of an adapter that stay, held ones not counted; older ones are retired.
    receipt_timeout_s: how long a publish waits for a sampler before it says that none served it. probe_tokens:
    length of the sequence that trainer and sampler both score; probe_tolerance: the largest difference of their
    log probabilities with which a version is served."""

    keep_versions: int = 4
    receipt_timeout_s: float = 120.0
    probe_tokens: int = 16
    probe_tolerance: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """http: "HOST:PORT" of the bridge; "auto" is 127.0.0.1 and a port that stays the same from start
    to start where it can; "none" is no bridge. Empty is "auto" for `loractl daemon start`, and "none"
    for programs that start a daemon of their own. listen: "tcp://HOST:PORT" where bus clients may connect
    with CURVE keys (`loractl keys curve`), besides the socket of this machine; empty is nowhere. Restarts
    back off from restart_first_s, doubling up to restart_max_s; after restart_limit failures in a row the
    actor is given up. chaos: a seed, with which messages get lost, come twice, late or in another order, and
    actors are killed, to try a client with; 0 is off.

    Actors send a heartbeat every heartbeat_s. One of which none came for heartbeat_timeout_s, or that is not
    ready ready_timeout_s after its start, is killed and started again. stuck_s: so is one that gets no further
    for so long with one step of its work; it says itself when it gets on: with each layer of a model, token,
    message and file. 0 is never. stop_timeout_s: how long a stop lets actors end by themselves.

    niceness: how far trainer and samplers give way where they and what answers clients want the same CPU, as
    `nice` counts it: at 10 a tenth as much of it is theirs, and all that is left over; 0 is not at all."""

    http: str = ""
    listen: str = ""
    ready_timeout_s: float = 600.0
    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 30.0
    stuck_s: float = 600.0
    restart_first_s: float = 0.5
    restart_max_s: float = 30.0
    restart_limit: int = 5
    stop_timeout_s: float = 4.0
    niceness: int = 10
    chaos: int = 0

    @property
    def serves_http(self) -> bool:
        return self.http not in ("", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Where the commands for clients find their daemon. connect: "tcp://HOST:PORT"; empty is the state
    directory's own. curve_key: the file that `loractl keys curve` made for this client."""

    connect: str = ""
    curve_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """session_expiry_s: how long a session lives without a heartbeat. long_poll_s: how long a poll
    for a result waits at most. result_s, result_bytes: finished results kept on disk so that they can be
    read again; those of a live session stay for as long as the bytes suffice, and beyond them who has the most gives some.
    record_s: how long what is listed of an ended session stays once nothing can be made of it any more (no checkpoint
    nor adapter is left of a run); 0 keeps it for ever. pending_samples: beyond so many,
    clients who have their share of them under way are told to slow down (429).
    ephemeral_samplers: unnamed sampler snapshots of a model that stay; older ones go.
    body_bytes: largest request body."""

    session_expiry_s: float = 600.0
    long_poll_s: float = 30.0
    result_s: float = 6 * 3600.0
    result_bytes: int = 512 * 2**20
    record_s: float = 30 * 24 * 3600.0
    pending_samples: int = 4096
    ephemeral_samplers: int = 64
    body_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """frame_bytes, header_bytes, frames: of one message on the bus; larger ones are refused. The journal takes
    outcomes of 10^9 bytes at most (SQLite's longest value), so frame_bytes stays below.
    inflight_per_tenant: requests of one tenant that actors hold at one time; further ones wait
    in the broker. outcome_bytes, outcome_s: finished answers kept in memory, and for how long, so that a resend
    gets the first outcome; behind them stands the journal's."""

    frame_bytes: int = 900 * 2**20
    header_bytes: int = 16 * 2**20
    frames: int = 64
    inflight_per_tenant: int = 4096
    outcome_bytes: int = 256 * 2**20
    outcome_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """keep_bytes: of each process's log; the oldest lines go. 0 is no bound."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    keep_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The tree. state_dir holds run/ (sockets), logs/, adapters/ and versions/."""

    state_dir: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    quotas: QuotasConfig = field(default_factory=QuotasConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_json(self) -> str:
        """One line of JSON that `config_from_json` reads back: how actors receive their config."""
        return json.dumps(dataclasses.asdict(self))
