"""What the trainer needs to know of a Hugging Face model directory, and refusal of all it cannot run.

A model that would be computed differently from Hugging Face is refused by the name of the setting,
never approximated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..bus.errors import InvalidConfig
from .linears import ModelShape


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one family of Llama-like models apart. SmolLM2 calls itself a Llama."""

    name: str
    qkv_bias: bool
    qk_norm: bool


FAMILIES = {
    "LlamaForCausalLM": Family("llama", qkv_bias=False, qk_norm=False),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, qk_norm=False),
    "Qwen3ForCausalLM": Family("qwen3", qkv_bias=False, qk_norm=True),
}

# Settings with the one value that this model code computes; absent counts as that value.
_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """inverse_frequencies [head_dim / 2]: of the rotary embedding, float32, as Hugging Face has them."""

    path: Path
    family: Family
    shape: ModelShape
    tied: bool
    norm_eps: float
    max_positions: int
    inverse_frequencies: torch.Tensor


def read_base_model(path: Path) -> BaseModel:
    """Read `config.json` of a Hugging Face directory.

    Raises:
        InvalidConfig: no such file, or a model that this trainer does not compute exactly.
    """
    file = path / "config.json"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise InvalidConfig(f"{file} holds no JSON object")
        _check_architecture(file, plain)
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InvalidConfig(f"cannot read {file}: {error}") from error
    _check_settings(file, config)
    return BaseModel(
        path=path,
        family=FAMILIES[plain["architectures"][0]],
        shape=_shape(file, config),
        tied=bool(config.tie_word_embeddings),
        norm_eps=float(config.rms_norm_eps),
        max_positions=int(config.max_position_embeddings),
        inverse_frequencies=_inverse_frequencies(file, config),
    )


def check_shares(base: BaseModel, ranks: int) -> None:
    """Raises InvalidConfig: tensor parallel ranks cannot share the model."""
    shape = base.shape
    if shape.kv_heads % ranks:
        raise InvalidConfig(
            f"{base.path}: {ranks} tensor parallel ranks cannot share {shape.kv_heads} key-value heads evenly"
        )
    if shape.ffn % (8 * ranks):
        raise InvalidConfig(
            f"{base.path}: {ranks} tensor parallel ranks cannot share an intermediate_size of {shape.ffn} in "
            "multiples of 8"
        )


def _check_architecture(file: Path, plain: dict[str, object]) -> None:
    names = plain.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if name not in FAMILIES:
        raise InvalidConfig(
            f"{file}: architecture {name!r} is not supported; these are: {', '.join(FAMILIES)}"
        )


def _check_settings(file: Path, config: PreTrainedConfig) -> None:
    for key, wanted in _REQUIRED.items():
        found = getattr(config, key, None)
        if found is not None and found != wanted:
            raise InvalidConfig(f"{file}: {key} = {found!r} is not supported, only {wanted!r}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise InvalidConfig(f"{file}: layer_types {sorted(kinds)} are not supported, only full_attention")


def _shape(file: Path, config: PreTrainedConfig) -> ModelShape:
    heads = int(config.num_attention_heads)
    shape = ModelShape(
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        ffn=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(config.num_key_value_heads or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocab=int(config.vocab_size),
    )
    if shape.heads % shape.kv_heads:
        raise InvalidConfig(
            f"{file}: {shape.heads} heads do not share {shape.kv_heads} key-value heads evenly"
        )
    if any(size % 8 for size in (shape.hidden, shape.ffn, shape.head_dim)):
        raise InvalidConfig(f"{file}: hidden_size, intermediate_size and head_dim must be multiples of 8")
    return shape


def _inverse_frequencies(file: Path, config: PreTrainedConfig) -> torch.Tensor:
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise InvalidConfig(
            f"{file}: rope_type {kind!r} is not supported; these are: {', '.join(_ROPE_TYPES)}"
        )
    if kind == "default":
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / (float(rope["rope_theta"]) ** exponents)
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    if scaling != 1.0:
        raise InvalidConfig(f"{file}: rope_type {kind!r} with attention factor {scaling} is not supported")
    return cast(torch.Tensor, frequencies).float()
