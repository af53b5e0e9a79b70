"""What the configuration leaves open, decided for this machine: model, device, number type, size of a pass."""

from pathlib import Path

import torch

from ..bus.config import Config
from ..bus.errors import InvalidConfig

# A pass of a few hundred positions fills a core; activations of more only take memory, and a pass of a
# larger model over more would have others wait for seconds.
_SMALL_MODEL_PARAMETERS = 50_000_000
_CPU_PASS_TOKENS, _CPU_PASS_TOKENS_OF_LARGER = 1024, 256
_CUDA_PASS_TOKENS = 16384


def model_directory(config: Config) -> Path:
    """Raises InvalidConfig."""
    given = config.model.path or config.model.name
    if not given or not Path(given).is_dir():
        raise InvalidConfig(f"{given!r} is no directory: set model.path to a Hugging Face model directory")
    return Path(given).absolute()


def device_of(config: Config) -> torch.device:
    """Raises InvalidConfig."""
    wanted = config.model.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("model.device is cuda, but torch finds no CUDA device here")
    return torch.device(wanted)


def dtype_of(config: Config, device: torch.device) -> torch.dtype:
    wanted = config.model.dtype
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


def adapter_dtype_of(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """dtype: of the base model. Small products in bfloat16 take ten times as long on a CPU: adapters stay
    float32 there."""
    return torch.float32 if device.type == "cpu" else dtype


def pass_tokens_of(config: Config, device: torch.device, parameters: int) -> int:
    """parameters: of the base model. The same on every machine with such a device."""
    if config.trainer.pass_tokens:
        return config.trainer.pass_tokens
    if device.type == "cuda":
        each = _CUDA_PASS_TOKENS
    else:
        each = _CPU_PASS_TOKENS if parameters < _SMALL_MODEL_PARAMETERS else _CPU_PASS_TOKENS_OF_LARGER
    return each * config.trainer.data_parallel
