"""Whether a model can be shared by so many ranks on this machine."""

import torch

from ...bus.config import TrainerConfig
from ...bus.errors import InvalidConfig
from ..row_layout import ModelShape


def check_sizes(settings: TrainerConfig, shape: ModelShape, device: torch.device) -> None:
    """Raises InvalidConfig."""
    size = settings.tensor_parallel
    for what, count, step in (("key-value heads", shape.kv_heads, 1), ("columns of its MLP", shape.ffn, 8)):
        if count % (step * size):
            raise InvalidConfig(
                f"trainer.tensor_parallel is {size}, and so many ranks cannot share the model's {count} {what} evenly"
            )
    if size > 1:
        raise InvalidConfig(f"trainer.tensor_parallel is {size}, which is not there yet: leave it at 1")
    if device.type == "cuda" and settings.ranks > torch.cuda.device_count():
        raise InvalidConfig(
            f"the trainer is to have {settings.ranks} ranks, and there are {torch.cuda.device_count()} CUDA "
            "devices: lower trainer.data_parallel"
        )
