"""What runs again on CUDA: to the same bits in the deterministic mode, and without it within what docs/recovery.md says."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from loractl.tests.daemon.neighbours import SETTINGS, SIZES, come_back_to_the_same_bits
from loractl.tests.daemon.trained_daemon import trained_daemon
from loractl.tests.trainer_actor.compute_lab import Lab
from loractl.tests.trainer_actor.test_compute_compositions import PARTS, End, again, prepare, run
from loractl.trainer_actor.engine import TrainEngine

pytestmark = pytest.mark.gpu

PASS_TOKENS = 256
# As a part of a gradient's norm.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Engines set it for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def twice(engine: TrainEngine) -> tuple[Sequence[End], Sequence[End]]:
    """All together, then each alone in the passes that were noted."""
    prepare(engine)
    together = run(engine, PARTS)
    prepare(engine)
    alone = [run(engine, [again(part, end)])[0] for part, end in zip(PARTS, together, strict=True)]
    return together, alone


@pytest.mark.usefixtures("deterministic")
def test_alone_in_the_noted_passes_it_has_the_same_bits_in_the_deterministic_mode(
    lab: Lab, dtype: str
) -> None:
    engine = lab.engine("wide", device="cuda", dtype=dtype, pass_tokens=PASS_TOKENS, deterministic=True)

    together, alone = twice(engine)

    assert alone == together


def test_without_it_log_probabilities_are_the_same_and_gradients_near(lab: Lab, dtype: str) -> None:
    engine = lab.engine("wide", device="cuda", dtype=dtype, pass_tokens=PASS_TOKENS)

    for first, second in zip(*twice(engine), strict=True):
        assert first.result.logprobs.tobytes() == second.result.logprobs.tobytes()
        if first.gradients is not None and second.gradients is not None:
            apart = torch.linalg.vector_norm(first.gradients - second.gradients)
            assert apart <= TOLERANCE[dtype] * torch.linalg.vector_norm(first.gradients)


@pytest.mark.timeout(900)
def test_tenants_are_brought_back_and_proved_to_the_bit_in_the_deterministic_mode(lab: Lab) -> None:
    settings = ("model.device=cuda", "model.dtype=bfloat16", "trainer.deterministic=true")
    with trained_daemon(*SETTINGS, *settings, **SIZES) as config:
        come_back_to_the_same_bits(config)
