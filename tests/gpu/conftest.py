"""Checks that need a CUDA device: `make gpu`. Elsewhere they are skipped, and say so."""

import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Lab(tmp_path_factory.mktemp("models"))
