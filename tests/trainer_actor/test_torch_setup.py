"""What the whole process is set to before a trainer computes."""

from collections.abc import Iterator

import pytest
import torch
from loractl.bus.config import TrainerConfig
from loractl.bus.errors import InvalidConfig
from loractl.trainer_actor.torch_setup import set_up_torch

CUDA = torch.device("cuda")
NAME = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_sums_have_an_order_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    set_up_torch(TrainerConfig(), CUDA)
    assert not torch.are_deterministic_algorithms_enabled()

    set_up_torch(TrainerConfig(deterministic=True), CUDA)

    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_an_environment_that_forbids_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, ":0:0")

    with pytest.raises(
        InvalidConfig, match=f"trainer.deterministic needs {NAME} to be one of :16:8, :4096:8"
    ):
        set_up_torch(TrainerConfig(deterministic=True), CUDA)
    assert not torch.are_deterministic_algorithms_enabled()
