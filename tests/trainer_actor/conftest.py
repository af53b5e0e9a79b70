"""Fixtures of the trainer's compute tests; what they are made of lies in `compute_lab`."""

import pytest
import torch
from loractl.tests.trainer_actor.compute_lab import Lab


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("models"))
