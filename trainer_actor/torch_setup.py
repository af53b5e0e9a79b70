"""How torch computes in this process: on how many threads, and whether sums have a fixed order on CUDA.

There attention's way back adds up as its blocks come. In the deterministic mode each product and sum has one order
(torch.use_deterministic_algorithms), so that what runs again in a pass of the same shape has the same bits, as it
has on a CPU anyway. Whatever has no such kernel then fails, and says so; nothing that passes use is among what
torch lists as that.
"""

import torch

from ..bus.config import TrainerConfig, set_process_environment
from .threads import threads_of


def set_up_torch(settings: TrainerConfig, device: torch.device) -> None:
    """For the whole process, before anything is computed."""
    if device.type == "cpu":
        torch.set_num_threads(threads_of(settings))
    if settings.deterministic:
        # Without it cuBLAS may choose by how much memory is left, and torch refuses every product.
        set_process_environment({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
        torch.use_deterministic_algorithms(True)
        # It would fill all memory that is taken before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set at import
