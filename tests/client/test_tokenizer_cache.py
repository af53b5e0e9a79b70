"""A local model's tokenizer under a hub name: Hugging Face libraries find it with no hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from loractl.bus.config import subprocess_environment
from loractl.bus.errors import InvalidData, InvalidName
from loractl.client.tiny_model import make_tiny_model
from loractl.client.tokenizer_cache import name_that_clients_ask_for, write_tokenizer_cache

NAME = "Some-Org/Some_Model.v1"
LOAD = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
chat = [{"role": "user", "content": "The sea?"}]
for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, fast=True)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    model_type = AutoConfig.from_pretrained(name).model_type
    print(json.dumps([tokenizer.encode("The sea is wide."), text, model_type]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(directory, steps=0)
    return directory


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """A model directory in outline, with what hubs put there."""
    directory = tmp_path / "little"
    (directory / "additional_chat_templates").mkdir(parents=True)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "README.md",
    ):
        (directory / name).write_text(name)
    return directory


def loaded(names: list[str], cache: Path, cwd: Path) -> list[object]:
    """What Hugging Face libraries make of each name, in a process that can ask no hub."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD, *names],
        env=subprocess_environment(
            {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
        ),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_hugging_face_finds_the_tokenizer_by_its_hub_name_without_a_hub(model: Path, tmp_path: Path):
    write_tokenizer_cache(NAME, model, tmp_path / "hub")

    by_name, by_path = loaded([NAME, str(model)], tmp_path / "hub", tmp_path)

    assert by_name == by_path
    assert by_name[0]
    assert by_name[2] == "qwen3"


def test_the_layout_is_the_hubs_and_holds_no_weights(little: Path, tmp_path: Path):
    snapshot = write_tokenizer_cache(NAME, little, tmp_path / "hub")

    home = tmp_path / "hub" / "models--Some-Org--Some_Model.v1"
    revision = (home / "refs" / "main").read_text()
    assert snapshot == home / "snapshots" / revision
    assert len(revision) == 40
    assert {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    }
    assert [each.name for each in snapshot.parent.iterdir()] == [revision]


def test_a_name_without_an_organisation_is_a_name(little: Path, tmp_path: Path):
    write_tokenizer_cache("gpt2", little, tmp_path / "hub")

    assert (tmp_path / "hub" / "models--gpt2" / "refs" / "main").is_file()


def test_writing_the_same_again_changes_nothing(little: Path, tmp_path: Path):
    first = write_tokenizer_cache(NAME, little, tmp_path / "hub")
    made = (first / "tokenizer.json").stat().st_mtime_ns

    assert write_tokenizer_cache(NAME, little, tmp_path / "hub") == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == made


def test_another_tokenizer_of_the_same_name_replaces_ours(little: Path, tmp_path: Path):
    first = write_tokenizer_cache(NAME, little, tmp_path / "hub")
    (little / "tokenizer.json").write_text("another")

    second = write_tokenizer_cache(NAME, little, tmp_path / "hub")

    assert second != first
    assert (second.parents[1] / "refs" / "main").read_text() == second.name
    assert (second / "tokenizer.json").read_text() == "another"


def test_what_came_from_the_hub_is_never_replaced(little: Path, tmp_path: Path):
    home = tmp_path / "hub" / "models--Some-Org--Some_Model.v1"
    downloaded = home / "snapshots" / ("0123456789" * 4)
    downloaded.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(downloaded.name)
    (home / "blob").write_text("the hub's")
    (downloaded / "tokenizer.json").symlink_to(home / "blob")

    with pytest.raises(InvalidData, match="--cache DIR"):
        write_tokenizer_cache(NAME, little, tmp_path / "hub")

    assert (home / "refs" / "main").read_text() == downloaded.name


@pytest.mark.parametrize("name", ["", "/a", "a/", "a/b/c", "../a", "a/..", "a--b/c", "a b", "a:b", "a\n"])
def test_a_name_that_no_hub_has_is_refused(little: Path, tmp_path: Path, name: str):
    with pytest.raises(InvalidName, match="ORG/NAME"):
        write_tokenizer_cache(name, little, tmp_path / "hub")


def test_a_directory_without_a_tokenizer_is_refused_by_name(little: Path, tmp_path: Path):
    for name in ("tokenizer.json", "vocab.json"):
        (little / name).unlink()
    with pytest.raises(InvalidData, match="little has no tokenizer"):
        write_tokenizer_cache(NAME, little, tmp_path / "hub")

    with pytest.raises(InvalidData, match=r"nowhere is no model directory: it has no config\.json"):
        write_tokenizer_cache(NAME, tmp_path / "nowhere", tmp_path / "hub")


def test_a_cache_that_cannot_be_written_is_named(little: Path, tmp_path: Path):
    (tmp_path / "hub").write_text("")

    with pytest.raises(InvalidData, match="cannot copy the tokenizer"):
        write_tokenizer_cache(NAME, little, tmp_path / "hub")


def test_the_sdk_asks_for_another_name_for_llama_3():
    assert name_that_clients_ask_for("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert name_that_clients_ask_for("meta-llama/Llama-3.2-1B").startswith("thinkingmachineslabinc/")
