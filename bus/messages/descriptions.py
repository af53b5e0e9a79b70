"""Descriptions that travel inside messages: adapters, models, versions."""

from dataclasses import dataclass, field
from typing import Literal

from ..ids import AdapterId, TenantId


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
class Usage:
    """What an adapter, or a tenant, took of the trainer since the trainer started.

    trainer_ms: measured time, its share where several had part in a pass. disk_ms: for which its saves, loads
    and publishes kept the disk's thread, while others trained. tokens: positions that ran through the model.
    passes, shared_passes: runs over the base model, and those of them that other adapters had part in.
    swaps, swapped_bytes: its state brought to the device, and bytes moved both ways.
    """

    trainer_ms: float = 0.0
    tokens: int = 0
    operations: int = 0
    passes: int = 0
    shared_passes: int = 0
    steps: int = 0
    swaps: int = 0
    swapped_bytes: int = 0
    disk_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantUsage:
    """A tenant, how many adapters it has, and what they took, with those that are deleted by now."""

    tenant: TenantId
    adapters: int
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDetails:
    """An adapter as its owner sees it.

    step: optimizer steps committed. version: newest published version, 0 when none.
    checkpoint_step: step of the newest checkpoint, -1 when none was saved.
    served_by: engine that serves its versions, and why, in words; empty until published.
    phase: "running" while operations of it wait or run, `queued` of them, else "registered".
    open_window: gradients wait for their step. place: where its training state lies.
    waits_for: why the first of them does not run yet, in words, or empty. row_bytes, state_bytes: of its
    training state on the device, and elsewhere; both at most.
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
    phase: Literal["registered", "running"] = "registered"
    open_window: bool = False
    place: Literal["device", "host", "disk"] = "disk"
    queued: int = 0
    waits_for: str = ""
    row_bytes: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails:
    """The base model. `path` is where its files lie on the daemon's machine. `weights`: a fingerprint of them."""

    name: str
    path: str
    family: str
    vocab_size: int
    max_sequence_tokens: int
    parameters: int
    dtype: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One immutable published version: enough for any sampler to load it without asking.

    number: 1, 2, … per adapter, never used again. directory: holds PEFT files. digest: SHA-256 of
    the safetensors file, hex. probe_tokens: a short sequence that the trainer scored with these
    weights; probe_logprobs: log p(t_i | t_<i) for i >= 1, one fewer than the tokens, at temperature 1.
    held: it stays until it is deleted by name, whatever `publish.keep_versions` says. request: of the
    publish that made it, which answers with it when it runs again.
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
    held: bool = False
    request: str = ""
