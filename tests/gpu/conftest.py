"""Checks that need a CUDA device: `make gpu`. Elsewhere they are skipped, and say so."""

import pytest
import torch
from loractl.bus.config import set_process_environment
from loractl.tests.trainer_actor.compute_lab import Lab
from loractl.trainer_actor.torch_setup import CUBLAS_IN_ORDER

# torch looks once, at the first product of the process, which a test without the deterministic mode may do.
set_process_environment(CUBLAS_IN_ORDER)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Lab(tmp_path_factory.mktemp("models"))
