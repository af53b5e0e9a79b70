"""The same commands with vLLM as the engine: train, publish, sample."""

import json

import pytest

pytest.importorskip("vllm", reason="vLLM does not import here")


def test_an_adapter_is_trained_published_and_sampled_through_vllm(loractl, tiny_model, rows):
    started = loractl.start(tiny_model, "sampler.engine=vllm", "trainer.threads=1")
    assert started.code == 0, started.err

    trained = loractl("train", rows, "--adapter", "pirate", "--rank", "8", "--lr", "1e-2", "--max-steps", "8")
    answer = loractl(
        "sample", "--adapter", "pirate", "--json", "--temperature", "0", "--max-tokens", "6", "Question 1?"
    )
    base = loractl("sample", "--json", "--temperature", "0", "--max-tokens", "6", "Question 1?")
    streamed = loractl(
        "sample", "--adapter", "pirate", "--temperature", "0", "--max-tokens", "6", "Question 1?"
    )
    stopped = loractl("daemon", "stop")

    assert trained.code == 0, trained.err
    assert "served by sampler-0 (vllm" in trained.out
    assert float(trained.out.split("within ")[1].split()[0]) < 1e-3
    sampled = json.loads(answer.out)
    assert (sampled["engine"], sampled["version"]) == ("vllm", 1)
    assert streamed.out == sampled["samples"][0]["text"] + "\n"
    assert json.loads(base.out)["samples"][0]["tokens"] != sampled["samples"][0]["tokens"]
    assert stopped.code == 0
