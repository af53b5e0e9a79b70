"""Whether a model can be shared by so many ranks on this machine."""

import torch

from ...bus.config import TrainerConfig
from ...bus.errors import InvalidConfig
from ..hf_config import BaseModel, check_shares


def check_sizes(settings: TrainerConfig, base: BaseModel, device: torch.device) -> None:
    """Raises InvalidConfig."""
    check_shares(base, settings.tensor_parallel)
    if device.type == "cuda" and settings.ranks > torch.cuda.device_count():
        raise InvalidConfig(
            f"the trainer is to have {settings.ranks} ranks, and there are {torch.cuda.device_count()} CUDA "
            "devices: lower trainer.data_parallel or trainer.tensor_parallel"
        )
