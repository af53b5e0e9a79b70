"""Reads a published version's PEFT directory into tensors, strictly.

Every tensor that the version's description promises must be there, of the right shape, and nothing
else. What is bound is what was hashed: the file is read once.

Legend: R = LoRA rank, I = inputs of a linear, O = its outputs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..bus.errors import PublishFailed
from ..bus.messages import LoraSpec, VersionRecord

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
UNEMBED = ("lm_head",)

_PREFIX = "base_model.model."
# Settings of PEFT that change what an adapter computes, and that this engine does not know.
_UNKNOWN_WAYS = (
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleMatrices:
    """A linear's share of an adapter: y += (x A^T) B, with alpha / rank already in B."""

    a_RI: Tensor
    b_RO: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """Never changed once made. modules: by the path of the linear in the model."""

    rank: int
    modules: Mapping[str, ModuleMatrices]


def read_adapter(
    record: VersionRecord,
    linears: Mapping[str, tuple[int, int]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> LoadedAdapter:
    """Read, check and convert. linears: (inputs, outputs) of every linear that may carry LoRA.

    Raises:
        PublishFailed: files missing, changed, broken, not finite, or of another shape.
    """
    directory = Path(record.directory)
    _check_config(_read_file(directory / "adapter_config.json"), record.lora)
    tensors = _read_tensors(directory / "adapter_model.safetensors", record.digest)
    targets = {path: linears[path] for path in linears if _is_target(path, record.lora)}
    _check_tensors(tensors, targets, record.lora.rank)
    scale = record.lora.alpha / record.lora.rank
    modules = {}
    for path in targets:
        a_RI, b_OR = (tensors[name] for name in _names(path))
        modules[path] = ModuleMatrices(
            a_RI=a_RI.to(device=device, dtype=dtype),
            b_RO=(b_OR.float().t() * scale).to(device=device, dtype=dtype).contiguous(),
        )
    _check_finite(modules)
    return LoadedAdapter(rank=record.lora.rank, modules=modules)


def _is_target(path: str, lora: LoraSpec) -> bool:
    name = path.rpartition(".")[2]
    return (
        (lora.train_attn and name in ATTENTION)
        or (lora.train_mlp and name in MLP)
        or (lora.train_unembed and name in UNEMBED)
    )


def _names(path: str) -> tuple[str, str]:
    return f"{_PREFIX}{path}.lora_A.weight", f"{_PREFIX}{path}.lora_B.weight"


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PublishFailed(f"cannot read {file}: {error}") from error


def _check_config(content: bytes, lora: LoraSpec) -> None:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise PublishFailed(f"adapter_config.json is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise PublishFailed("adapter_config.json does not describe a LoRA adapter")
    if (config.get("r"), config.get("lora_alpha")) != (lora.rank, lora.alpha):
        raise PublishFailed(
            f"adapter_config.json says rank {config.get('r')} and alpha {config.get('lora_alpha')}, "
            f"the version says {lora.rank} and {lora.alpha}"
        )
    unknown = [key for key in _UNKNOWN_WAYS if config.get(key)]
    if config.get("bias", "none") != "none":
        unknown.append("bias")
    if unknown:
        raise PublishFailed(f"adapter_config.json uses {', '.join(unknown)}: plain LoRA only")


def _read_tensors(file: Path, digest: str) -> dict[str, Tensor]:
    content = _read_file(file)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise PublishFailed(f"{file} has SHA-256 {found[:12]}…, the version was published as {digest[:12]}…")
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise PublishFailed(f"{file} is not a safetensors file: {error}") from error
    return tensors


def _check_tensors(tensors: Mapping[str, Tensor], targets: Mapping[str, tuple[int, int]], rank: int) -> None:
    """Names and shapes of what is there must be exactly those of what is expected."""
    expected: dict[str, tuple[int, int]] = {}
    for path, (inputs, outputs) in targets.items():
        a_name, b_name = _names(path)
        expected |= {a_name: (rank, inputs), b_name: (outputs, rank)}
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise PublishFailed(
            f"the adapter lacks {len(missing)} tensors (first {missing[:1]}) "
            f"and has {len(extra)} that do not belong (first {extra[:1]})"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape or not tensors[name].is_floating_point():
            raise PublishFailed(
                f"{name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, expected floats {shape}"
            )


def _check_finite(modules: Mapping[str, ModuleMatrices]) -> None:
    """Refused at the door, because 0 times NaN in a shared product would reach other rows."""
    for path, module in modules.items():
        if not (module.a_RI.isfinite().all() and module.b_RO.isfinite().all()):
            raise PublishFailed(f"the adapter holds NaN or infinity at {path}")
