"""PEFT directories: copied out whole or not at all, and read with their shape."""

import hashlib
import json
from pathlib import Path

import pytest
from loractl.bus.errors import CheckpointMismatch, InvalidData, VersionNotFound
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import LoraSpec, VersionRecord
from loractl.client.peft_folders import choose_version, export_version, lora_of, read_peft_folder

WEIGHTS = b"weights of version 1"
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "down_proj", "model.layers.0.mlp.up_proj"),
    ],
}


def version(directory: Path, number: int = 1, weights: bytes = WEIGHTS) -> VersionRecord:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG))
    (directory / "version.json").write_text("{}")
    return VersionRecord(
        adapter=AdapterId("ad-1"),
        tenant=LOCAL_TENANT,
        name="pirate",
        number=number,
        step=3,
        directory=str(directory),
        digest=hashlib.sha256(WEIGHTS).hexdigest(),
        lora=LoraSpec(rank=4, alpha=8.0, seed=0),
        modules=2,
        probe_tokens=(),
        probe_logprobs=(),
    )


def test_an_export_holds_the_two_peft_files_and_nothing_else(tmp_path: Path):
    export_version(version(tmp_path / "v"), tmp_path / "out" / "deep")

    assert sorted(f.name for f in (tmp_path / "out" / "deep").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_directory_with_anything_in_it_is_refused(tmp_path: Path):
    record = version(tmp_path / "v")

    with pytest.raises(InvalidData, match="not empty"):
        export_version(record, tmp_path)
    with pytest.raises(InvalidData, match="cannot write"):
        export_version(record, tmp_path / "v" / "version.json")


def test_a_copy_that_differs_from_what_was_published_is_removed(tmp_path: Path):
    record = version(tmp_path / "v", weights=b"something else")

    with pytest.raises(CheckpointMismatch, match="as published"):
        export_version(record, tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []


def test_a_version_that_was_deleted_meanwhile_is_named(tmp_path: Path):
    record = version(tmp_path / "v")
    (tmp_path / "v" / "adapter_config.json").unlink()

    with pytest.raises(VersionNotFound, match="not kept any more"):
        export_version(record, tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []


def test_the_newest_version_is_meant_unless_one_is_named(tmp_path: Path):
    records = [version(tmp_path, number) for number in (2, 3)]

    assert choose_version("pirate", records, None).number == 3
    assert choose_version("pirate", records, 2).number == 2
    with pytest.raises(VersionNotFound, match="these are kept: 2, 3"):
        choose_version("pirate", records, 1)
    with pytest.raises(VersionNotFound, match="no published version"):
        choose_version("pirate", [], None)


def test_a_peft_directory_is_read_with_its_shape(tmp_path: Path):
    version(tmp_path)

    folder = read_peft_folder(tmp_path)

    assert folder.safetensors == WEIGHTS
    assert folder.lora == LoraSpec(rank=4, alpha=8.0, seed=0, train_attn=True, train_mlp=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"r": "4"}, "r is '4'"),
        ({"r": 2**70}, "numbers below 2147483648"),
        ({"lora_alpha": 10**400}, "numbers below 2147483648"),
        ({"lora_alpha": float("nan")}, "numbers below 2147483648"),
        ({"target_modules": "all-linear"}, "'all-linear'"),
        ({"target_modules": ["embed_tokens"]}, "'embed_tokens'"),
        ({"target_modules": []}, "must list"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks k_proj, o_proj: loractl trains .* together"),
    ],
)
def test_what_is_no_lora_of_ours_is_refused_by_name(change, says):
    with pytest.raises(InvalidData, match=says):
        lora_of({**CONFIG, **change}, seed=0)


def test_a_directory_that_is_no_peft_directory_is_refused(tmp_path: Path):
    with pytest.raises(InvalidData, match=r"is .* a PEFT directory"):
        read_peft_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidData, match="not JSON"):
        read_peft_folder(tmp_path)
