"""Both sampling engines on CUDA, in bfloat16, against Hugging Face and PEFT in float32 on the CPU."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loractl.bus.messages import VersionRecord
from loractl.sampler_actor.engine import Engine, ScoreWish, key_of
from loractl.sampler_actor.engines import open_engine, why_not_vllm
from loractl.tests.sampler_actor.jobs import job_of, outcomes, prompt_of
from loractl.tests.sampler_actor.tiny import (
    ALICE,
    BOB,
    CONTEXT,
    Reference,
    engine_settings,
    make_model,
    make_version,
)

pytestmark = pytest.mark.gpu

# Two layers of random weights in bfloat16; a wrong adapter differs by several units.
TOLERANCE = 0.25


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def records(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[VersionRecord]:
    root = tmp_path_factory.mktemp("versions")
    return [
        make_version(model, root / "alice", adapter=ALICE, rank=4, seed=1),
        make_version(model, root / "bob", adapter=BOB, rank=8, seed=3, train_mlp=False),
    ]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["torch", "vllm"])
def engine(request: pytest.FixtureRequest, runner: asyncio.Runner, model: Path) -> Iterator[Engine]:
    if request.param == "vllm" and (reason := why_not_vllm("cuda")):
        pytest.skip(reason)
    settings = engine_settings(model, device="cuda", dtype="bfloat16", gpu_memory_utilization=0.1)
    engine = open_engine(request.param, settings)
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


def test_adapters_mixed_with_the_base_are_near_their_references(
    engine: Engine, runner: asyncio.Runner, model: Path, records: list[VersionRecord]
) -> None:
    assert [runner.run(engine.add(record)) for record in records] == [r.modules for r in records]
    choices = [None, *(key_of(record) for record in records)]
    jobs = [
        job_of(choices[i % 3], prompt_of(5 + i, seed=i), temperature=0.7 * (i % 2), top_k=20, seed=i)
        for i in range(18)
    ]

    got = runner.run(outcomes(engine, jobs))

    reference = Reference(model, records)
    for job, one in zip(jobs, got, strict=True):
        whole = job.prompt + one.tokens
        expected = reference.logprobs(job.version, whole, temperature=job.temperature or 1.0)
        np.testing.assert_allclose(one.logprobs, expected[len(job.prompt) :], rtol=0, atol=TOLERANCE)


def test_prompts_are_scored_near_the_reference(
    engine: Engine, runner: asyncio.Runner, model: Path, records: list[VersionRecord]
) -> None:
    reference = Reference(model, records)
    for record in records:
        runner.run(engine.add(record))
        scored = runner.run(engine.score(key_of(record), prompt_of(40))).logprobs
        np.testing.assert_allclose(
            scored[1:], reference.logprobs(key_of(record), prompt_of(40))[1:], atol=TOLERANCE
        )


def test_choices_targets_and_alternatives_are_near_the_reference(
    engine: Engine, runner: asyncio.Runner, model: Path, records: list[VersionRecord]
) -> None:
    """Over a prompt that fills the context, so it is computed in parts."""
    prompt = prompt_of(CONTEXT)
    targets = np.stack([np.array(prompt[1:]), np.full(CONTEXT - 1, -1)], axis=-1)
    wish = ScoreWish(topk=30, targets=targets, alternatives=5, temperature=0.7, seed=1)
    record = records[0]
    runner.run(engine.add(record))

    scored = runner.run(engine.score(key_of(record), prompt, wish))

    table = Reference(model, records).table(key_of(record), prompt)[:-1]
    for tokens, logprobs in (
        (scored.topk_tokens[1:], scored.topk_logprobs[1:]),
        (targets[:, :1], scored.target_logprobs[:, :1]),
        (scored.alternative_tokens, scored.alternative_logprobs),
    ):
        np.testing.assert_allclose(logprobs, np.take_along_axis(table, tokens, axis=-1), atol=TOLERANCE)
