"""The base model of the embedded engine: Hugging Face's own modules, run on packed steps.

Refuses at the start what it would silently compute differently from Hugging Face: families it has
not been compared with, sliding windows, and rotary scaling that depends on the longest sequence of
a batch, which would let neighbours change each other's numbers.

Legend: T = packed tokens, H = hidden size, N = positions whose logits are wanted, V = vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..bus.errors import EngineFailed
from .engine import EngineSettings, VersionKey
from .torch_adapter import ATTENTION, MLP, UNEMBED
from .torch_attention import PackedStep, packed_attention
from .torch_cache import CacheShape
from .torch_lora import LoraStack

_FAMILIES = ("llama", "qwen2", "qwen3")
_ROTARY = ("default", "linear", "llama3", "yarn")
_ATTENTION_NAME = "loractl_packed"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PackedModel:
    """Used by one thread. cache_shape: what one token's keys and values look like."""

    def __init__(self, settings: EngineSettings) -> None:
        """Load the weights.

        Raises:
            EngineFailed: not a model, or not one that this engine serves exactly.
        """
        self.device = torch.device(settings.device)
        self.dtype = _DTYPES[settings.dtype]
        self._model = _load(settings.model_path, self.dtype).to(self.device).eval().requires_grad_(False)
        config = self._model.config
        _check_exact(config)
        self.lora = LoraStack(self._model, (*ATTENTION, *MLP, *UNEMBED), self.device)
        self.vocab_size: int = config.vocab_size
        self.cache_shape = CacheShape(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            dtype=self.dtype,
            device=self.device,
        )

    def hidden(self, step: PackedStep) -> Tensor:
        """Run the layers on a packed step, filling the cache; returns the last hidden states [T, H]."""
        alone = sum(count == 1 for _, count in step.order)
        versions = [sequence.version for sequence, _ in step.order]
        self.lora.prepare({version for version in versions if version is not None})
        counts = [count for _, count in step.order[alone:]]
        self.lora.assign(versions[:alone], zip(versions[alone:], counts, strict=True))
        output = self._model.model(
            input_ids=step.ids_1T, position_ids=step.positions_1T, use_cache=False, step=step
        )
        hidden_TH: Tensor = output.last_hidden_state[0]
        return hidden_TH

    def logits(self, hidden_NH: Tensor, versions: Sequence[VersionKey | None]) -> Tensor:
        """Float32 logits [N, V] of positions of the step that `hidden` ran last."""
        self.lora.assign(versions, ())
        logits_NV: Tensor = self._model.lm_head(hidden_NH)
        return logits_NV.float()


def _load(path: str, dtype: torch.dtype) -> PreTrainedModel:
    AttentionInterface.register(_ATTENTION_NAME, packed_attention)
    transformers_logging.disable_progress_bar()
    try:
        # safetensors only: the other format is pickle.
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=_ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineFailed(f"cannot load the model at {path}: {error}") from error
    return model


def _check_exact(config: PretrainedConfig) -> None:
    family = getattr(config, "model_type", "unknown")
    if family not in _FAMILIES:
        raise EngineFailed(f"the torch engine serves {', '.join(_FAMILIES)}; this model is {family}")
    layer_types = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in layer_types):
        raise EngineFailed("the torch engine has no sliding window attention, which this model uses")
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _ROTARY:
        raise EngineFailed(f"the torch engine has no exact {rotary!r} rotary scaling")
