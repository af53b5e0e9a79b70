"""Descriptions that travel inside messages: adapters, models, versions."""

from dataclasses import dataclass

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
    held: it stays until it is deleted by name, whatever `publish.keep_versions` says.
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
