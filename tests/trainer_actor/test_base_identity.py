"""Base models are told apart by their weights, not only by name and shape."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from loractl.bus.errors import AnotherBase, CheckpointMismatch, InvalidConfig
from loractl.bus.ids import TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.base_identity import base_difference, weights_fingerprint
from loractl.trainer_actor.checkpoint_state import check_geometry
from loractl.trainer_actor.registry import open_registry
from safetensors.torch import load_file, save_file

ME = TenantId("me")
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
# As bases were written down before their weights were, and since.
OLD, THIS, OTHER = "tiny 0123", "tiny 0123-aa", "tiny 0123-bb"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Tensors that are read whole, and one that is not."""
    stream = torch.Generator().manual_seed(1)
    sizes = {"norm": (64,), "small": (8, 8), "empty": (0, 8), "large": (512, 128)}
    named = {name: torch.randn(size, generator=stream) for name, size in sizes.items()}
    save_file(named, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_copy_is_the_same_base_whatever_its_files_are_called(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(file.parent, copy, ignore=shutil.ignore_patterns("copy"))
    named = load_file(file)
    parts = [copy / "b.safetensors", copy / "a.safetensors"]
    for part, names in zip(parts, (["large", "norm"], ["empty", "small"]), strict=True):
        save_file({name: named[name] for name in names}, part, metadata={"format": "pt"})

    assert weights_fingerprint([copy / file.name]) == weights_fingerprint([file])
    assert weights_fingerprint(parts) == weights_fingerprint([file])


@pytest.mark.parametrize("changed", ["norm", "small", "large"])
def test_one_tensor_times_one_percent_more_is_another_base(file: Path, changed: str) -> None:
    before = weights_fingerprint([file])
    named = load_file(file)

    save_file({**named, changed: named[changed] * 1.01}, file)

    assert weights_fingerprint([file]) != before


@pytest.mark.parametrize("number", [0, 512 * 128 - 1])
def test_the_first_and_the_last_number_of_a_large_tensor_count(file: Path, number: int) -> None:
    before = weights_fingerprint([file])
    named = load_file(file)

    named["large"].view(-1)[number] += 1
    save_file(named, file)

    assert weights_fingerprint([file]) != before


@pytest.mark.parametrize("how", ["shape", "dtype", "name"])
def test_equal_bytes_of_another_shape_type_or_name_are_another_base(file: Path, how: str) -> None:
    before = weights_fingerprint([file])
    named = load_file(file)

    small = named.pop("small")
    changed = {"shape": small.view(4, 16), "dtype": small.view(torch.int32), "name": small}
    save_file({**named, "other" if how == "name" else "small": changed[how]}, file)

    assert weights_fingerprint([file]) != before


@pytest.mark.parametrize("data", [b"", b"\x10" + bytes(7) + b"[]", bytes([2]) + bytes(7) + b"{x"])
def test_a_file_that_is_no_safetensors_is_told(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    with pytest.raises(InvalidConfig, match="cannot read"):
        weights_fingerprint([file])


def test_other_weights_are_told_by_the_models_name() -> None:
    assert "'tiny' has other weights here than it had there (aa is not bb)" in base_difference(THIS, OTHER)
    assert base_difference("my tiny 0123-aa", THIS) == "base model my tiny 0123-aa is not tiny 0123-aa"
    assert base_difference("tiny 4567-aa", THIS) == "base model tiny 4567-aa is not tiny 0123-aa"
    assert base_difference(THIS, THIS) == ""

    with pytest.raises(
        CheckpointMismatch, match="'first' does not fit this adapter: base model 'tiny' has other"
    ):
        check_geometry("checkpoint 'first'", (LORA, THIS), (LORA, OTHER))


def test_an_adapter_over_other_weights_of_the_same_name_is_refused_by_id_and_by_name(tmp_path: Path) -> None:
    registry = open_registry(StateLayout(tmp_path), THIS)
    record = registry.draft(ME, "poet", LORA, now_unix_s=1.0)
    registry.add(record)

    other = open_registry(StateLayout(tmp_path), OTHER)

    for refused in (lambda: other.owned(ME, record.adapter), lambda: other.of(ME, "poet")):
        with pytest.raises(AnotherBase, match="'tiny' has other weights here"):
            refused()
    assert other.of(ME) == []
    assert open_registry(StateLayout(tmp_path), THIS).of(ME, "poet") == [record]


def test_an_adapter_of_before_weights_were_noted_is_bound_to_those_that_it_is_next_written_over(
    tmp_path: Path,
) -> None:
    layout = StateLayout(tmp_path)
    registry = open_registry(layout, OLD)
    record = registry.draft(ME, "poet", LORA, now_unix_s=1.0)
    registry.add(record)

    found = open_registry(layout, THIS)
    found.begin_version(record.adapter)

    assert json.loads((layout.adapter(record.adapter) / "adapter.json").read_bytes())["base"] == THIS
    assert open_registry(layout, OTHER).all() == []
    check_geometry("checkpoint 'first'", (LORA, OLD), (LORA, THIS))
