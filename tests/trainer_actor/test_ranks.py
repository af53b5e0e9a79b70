"""Two data-parallel ranks: the same bits whoever is beside, and what one process computes, within rounding.

The scenes of `ranks_scenes` are played by two real processes, once for each way to share the work, and once here.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from loractl.bus.config import Config, ModelConfig, TrainerConfig, subprocess_environment
from loractl.bus.errors import InvalidConfig
from loractl.tests.trainer_actor import ranks_scenes
from loractl.tests.trainer_actor.compute_lab import Lab
from loractl.tests.trainer_actor.ranks_scenes import FAMILY, SCENES, SETTINGS, Came
from loractl.trainer_actor.engine import TrainEngine

ROOT = Path(__file__).resolve().parents[2]
# Sums of parts are added up by themselves, and then those of all parts: another order. A gradient of this model is up
# to hundreds, and Adam makes steps of one size of what is nearly nothing.
TOLERANCE = {"rtol": 2e-4, "atol": 3e-4}
# Memory of earlier passes goes back to the system, so that a limit on all of it is one on what the next pass takes.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT / ".pkg"),
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
}


@pytest.fixture(scope="module")
def played(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Came]:
    """What came of the scenes on two ranks, data parallel and tensor parallel ones: by rank 0 of others, which is a
    process of its own."""
    from safetensors.torch import load_file

    lab.directory(FAMILY)
    directory = tmp_path_factory.mktemp("ranks")
    files = {name: directory / f"{name}.safetensors" for name in ("data", "tensor")}
    worlds = [(files["data"], 2, 1, [*SCENES]), (files["tensor"], 1, 2, ["together", "few_datums"])]
    lines = "\n".join(json.dumps([str(file), *rest]) for file, *rest in worlds)
    subprocess.run(
        [sys.executable, "-W", "ignore", ranks_scenes.__file__, str(lab.root), lines],
        env=subprocess_environment(ENVIRONMENT),
        check=True,
        timeout=240,
    )
    return {name: load_file(file) for name, file in files.items()}


@pytest.fixture
def two(played: dict[str, Came]) -> Came:
    return played["data"]


@pytest.fixture(scope="module")
def engine(lab: Lab) -> TrainEngine:
    return lab.engine(FAMILY, **SETTINGS)


def scene(came: Came, name: str) -> Came:
    return {key.removeprefix(f"{name}/"): value for key, value in came.items() if key.startswith(f"{name}/")}


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert first
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def assert_close(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(
            first[key], second[key], **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", ["interleaved", "together"])
def test_b1_03_on_two_ranks_an_adapter_trains_among_others_as_alone(two: Came, name: str) -> None:
    assert_same(scene(two, name), scene(two, "alone"))


@pytest.mark.parametrize("name", ["alone", "few_datums", "not_a_number"])
def test_b3_06_two_ranks_compute_what_one_does_however_few_datums_there_are(
    two: Came, engine: TrainEngine, name: str
) -> None:
    assert_close(scene(two, name), SCENES[name](engine))


def test_memory_that_runs_out_on_any_rank_costs_another_try_and_no_bit(two: Came) -> None:
    found = {where: scene(two, f"without_room/{where}") for where in ("here", "there", "nowhere")}

    assert found["here"].pop("restarted").all()
    assert found["there"].pop("restarted").all()
    assert not found["nowhere"].pop("restarted").any()
    assert_same(found["here"], found["nowhere"])
    assert_same(found["there"], found["nowhere"])


def test_on_several_threads_an_operation_runs_again_in_its_noted_passes_to_the_same_bits(two: Came) -> None:
    assert two["noted/same"].all()


def test_costs_are_measured_and_no_process_is_left(two: Came) -> None:
    assert two["measured/positive"]
    assert not two["left"]


def test_tensor_parallel_ranks_compute_what_one_process_does(
    played: dict[str, Came], engine: TrainEngine
) -> None:
    came = played["tensor"]

    assert not came["left"]
    assert_close(scene(came, "together"), SCENES["together"](engine))
    assert_close(scene(came, "few_datums"), SCENES["few_datums"](engine))


@pytest.mark.parametrize(
    ("family", "size", "words"), [("smollm2", 2, "3 key-value heads"), ("llama", 3, "2 key-value heads")]
)
def test_a_tensor_parallel_size_that_does_not_fit_is_refused_by_name(
    lab: Lab, family: str, size: int, words: str
) -> None:
    config = Config(
        model=ModelConfig(path=str(lab.directory(family)), device="cpu"),
        trainer=TrainerConfig(tensor_parallel=size),
    )

    with pytest.raises(InvalidConfig, match=f"{size} tensor parallel ranks cannot share {words}"):
        TrainEngine.build(config)
