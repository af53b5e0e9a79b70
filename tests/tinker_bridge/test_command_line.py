"""The command line beside SDK clients, with vLLM as the engine: train, publish, sample."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loractl.tests.cli.conftest import Commands
from loractl.tests.tinker_bridge.served import Served

pytest.importorskip("vllm", reason="vLLM does not import here")


@pytest.fixture
def loractl(served: Served) -> Iterator[Commands]:
    commands = Commands(Path(served.config.state_dir))
    yield commands
    commands("adapters", "rm", "pirate")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    answers = ("Arr!", "Aye, matey.", "The sea be calling.", "Land ahoy!")
    file.write_text(
        "".join(f'{{"prompt": "Question {i}?", "completion": "{a}"}}\n' for i, a in enumerate(answers))
    )
    return file


def test_an_adapter_is_trained_published_and_sampled_through_vllm(loractl: Commands, rows: Path):
    trained = loractl("train", rows, "--adapter", "pirate", "--rank", "8", "--lr", "1e-2", "--max-steps", "8")
    answer = loractl(
        "sample", "--adapter", "pirate", "--json", "--temperature", "0", "--max-tokens", "6", "Question 1?"
    )
    base = loractl("sample", "--json", "--temperature", "0", "--max-tokens", "6", "Question 1?")
    streamed = loractl(
        "sample", "--adapter", "pirate", "--temperature", "0", "--max-tokens", "6", "Question 1?"
    )

    assert trained.code == 0, trained.err
    assert "served by sampler-0 (vllm" in trained.out
    assert float(trained.out.split("within ")[1].split()[0]) < 1e-3
    sampled = json.loads(answer.out)
    assert (sampled["engine"], sampled["version"]) == ("vllm", 1)
    assert streamed.out == sampled["samples"][0]["text"] + "\n"
    assert json.loads(base.out)["samples"][0]["tokens"] != sampled["samples"][0]["tokens"]
