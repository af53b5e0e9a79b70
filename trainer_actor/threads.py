"""How many threads each rank of the trainer computes with, on a CPU. Pure: no torch."""

import os

from ..bus.config import TrainerConfig


def threads_of(settings: TrainerConfig) -> int:
    """As set, or one fewer than the machine has, shared by the ranks."""
    return settings.threads or max(1, ((os.cpu_count() or 2) - 1) // settings.ranks)
