"""How torch computes in this process: on how many threads, and whether sums have a fixed order on CUDA.

There attention's way back adds up as its blocks come. In the deterministic mode (torch.use_deterministic_algorithms)
each product and sum has one order, so that what runs again in a pass of the same shape is meant to have the same bits, as
it has on a CPU anyway. An operation without such a kernel would raise: none that passes use is among those that torch
lists.
"""

from collections.abc import Mapping

import torch

from ..bus.config import TrainerConfig, set_process_environment
from ..bus.errors import InvalidConfig
from .threads import threads_of

# Else cuBLAS may choose by how much memory is left, and torch refuses every product in this mode. It looks once, at
# the first product of the process.
_NAME = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_IN_ORDER: Mapping[str, str] = {_NAME: ":4096:8"}
_IN_ORDER = frozenset({":4096:8", ":16:8"})


def set_up_torch(settings: TrainerConfig, device: torch.device) -> None:
    """For the whole process, before anything is computed.

    Raises:
        InvalidConfig: the environment forbids what is asked for.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads_of(settings))
    if settings.deterministic:
        set_to = set_process_environment(CUBLAS_IN_ORDER)[_NAME]
        if device.type == "cuda" and set_to not in _IN_ORDER:
            raise InvalidConfig(
                f"trainer.deterministic needs {_NAME} to be one of {', '.join(sorted(_IN_ORDER))}, and it is "
                f"{set_to!r}: unset it"
            )
        torch.use_deterministic_algorithms(True)
        # It would fill all memory that is taken before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set at import
