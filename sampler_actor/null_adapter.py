"""An adapter that changes nothing, on disk.

vLLM's CPU build up to 0.32 gives a base request that shares a batch with LoRA requests somebody's
adapter once all slots are taken (vllm #48421). So base requests go through this one.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_MODULE = "base_model.model.model.layers.0.self_attn.o_proj"


def write_null_adapter(directory: Path, *, model_path: str) -> None:
    """Write PEFT files with one all-zero LoRA, of rank 1, on the first layer's o_proj."""
    model = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    inputs = heads * (model.get("head_dim") or hidden // heads)
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["o_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    tensors = {
        f"{_MODULE}.lora_A.weight": np.zeros((1, inputs), np.float32),
        f"{_MODULE}.lora_B.weight": np.zeros((hidden, 1), np.float32),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "adapter_model.safetensors")
