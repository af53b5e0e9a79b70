"""The sampler as a process, with vLLM beside the embedded engine: routes, bad files, deaths, orphans."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from loractl.bus.messages import (
    ActorReady,
    Failed,
    SampleChunk,
    SampleResult,
    VersionRecord,
    VersionReleased,
    VersionServed,
)
from loractl.sampler_actor.engine import key_of
from loractl.tests.sampler_actor.desk import (
    ANSWER_S,
    PROMPT,
    START_S,
    Desk,
    SamplerProcess,
    config_for,
    other_number,
    published,
    running_sampler,
    sample_of,
)
from loractl.tests.sampler_actor.tiny import CONTEXT, END_TOKEN, Reference, retargeted

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
LONG = CONTEXT - len(PROMPT)
REBUILD_S = 120.0


@pytest.fixture(scope="module")
def started(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Desk, SamplerProcess, ActorReady]]:
    config = config_for(tmp_path_factory.mktemp("s"), tiny_model, engine="auto", max_loras=2, max_loaded=3)
    with running_sampler(config) as started:
        yield started


@pytest.fixture
def desk(started: tuple[Desk, SamplerProcess, ActorReady]) -> Desk:
    return started[0]


@pytest.fixture
def sampler(started: tuple[Desk, SamplerProcess, ActorReady]) -> SamplerProcess:
    return started[1]


def assert_right(answer: object, record: VersionRecord | None, reference: Reference) -> None:
    """Greedy tokens and their logprobs are Hugging Face's and PEFT's."""
    assert isinstance(answer, SampleResult)
    key = key_of(record) if record else None
    tokens = tuple(map(int, answer.tokens))
    reference.assert_greedy(key, PROMPT, tokens)
    expected = reference.logprobs(key, PROMPT + tokens)[len(PROMPT) :]
    np.testing.assert_allclose(answer.logprobs, expected, atol=1e-4)


def test_vllm_is_the_engine_where_it_is_installed(started):
    _, _, ready = started

    assert ready.details.startswith("vllm on cpu, float32")


def test_a_version_is_served_by_vllm_and_one_on_the_unembedding_beside_it(desk, versions, reference):
    desk.publish(versions["alice-1"])
    desk.publish(versions["bob-2"])
    plain = desk.report(VersionServed, adapter="ad-alice")
    unembed = desk.report(VersionServed, adapter="ad-bob")

    assert (plain.engine, plain.error, plain.modules_bound) == ("vllm", "", versions["alice-1"].modules)
    assert (unembed.engine, unembed.error, unembed.modules_bound) == ("torch", "", versions["bob-2"].modules)
    assert "unembedding" in unembed.engine_reason
    assert max(plain.probe_max_abs_diff, unembed.probe_max_abs_diff) < 1e-4
    for name, engine in [("alice-1", "vllm"), ("bob-2", "torch")]:
        answer = desk.ask(sample_of(versions[name]))
        assert_right(answer, versions[name], reference)
        assert answer.engine == engine


def test_the_base_stays_the_base_when_all_places_for_adapters_are_taken(desk, versions, reference):
    """vLLM's CPU build up to 0.32 answers such a base request with somebody's adapter."""
    records = [published(desk, versions[name]) for name in ("alice-1", "alice-2", "bob-1")]
    requests = {desk.send(sample_of(r, max_tokens=24)): r for r in [None, *records, None, *records]}

    for request, record in requests.items():
        assert_right(desk.answer(request), record, reference)


def test_versions_beyond_what_may_be_loaded_are_brought_back_on_demand(desk, versions, reference):
    copies = [published(desk, other_number(versions["bob-1"], n, adapter="ad-many")) for n in range(1, 6)]

    for record in copies:
        answer = desk.ask(sample_of(record))
        assert_right(answer, versions["bob-1"], reference)
        assert answer.version == record.number


def test_what_binds_to_no_module_is_not_served(desk, versions, tmp_path):
    directory = retargeted(versions["bob-1"], tmp_path / "elsewhere")
    digest = hashlib.sha256((directory / "adapter_model.safetensors").read_bytes()).hexdigest()
    lost = other_number(versions["bob-1"], 7, directory=str(directory), digest=digest)
    desk.publish(lost)

    served = desk.report(VersionServed, version=7)

    assert served.error
    assert desk.ask(sample_of(lost)).code == "publish_failed"
    assert isinstance(desk.ask(sample_of()), SampleResult)


def test_a_retired_version_is_removed_and_its_files_may_go(desk, versions, reference):
    record = published(desk, other_number(versions["alice-2"], 9, adapter="ad-fred"))
    desk.ask(sample_of(record))
    desk.retire(record)

    assert desk.report(VersionReleased, adapter="ad-fred").version == 9
    assert_right(desk.ask(sample_of(versions["alice-2"])), versions["alice-2"], reference)


def test_the_models_own_end_token_stops_an_answer(desk, reference):
    prompt = np.array([reference.most_often_before(END_TOKEN)])
    answer = desk.ask(
        sample_of(prompt=prompt, temperature=1.0, seed=0, num_samples=64, max_tokens=4, stop_tokens=None)
    )

    ended = [i for i, reason in enumerate(answer.stop_reasons) if reason == "stop"]
    assert ended, "no answer met the end token: use more seeds"
    for i in ended:
        end = answer.lengths[: i + 1].sum()
        assert answer.tokens[end - 1] == END_TOKEN


def test_a_dead_engine_fails_what_is_in_flight_and_comes_back_with_its_versions(
    desk, sampler, versions, reference
):
    record = published(desk, versions["alice-1"])
    request = desk.send(sample_of(record, max_tokens=LONG, num_samples=8, stream=True))
    desk.wait(lambda e: e.request == request and isinstance(e.body, SampleChunk), ANSWER_S)

    sampler.engine_core().kill()
    failed = desk.answer(request)
    waiting = desk.send(sample_of(record))

    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable, failed.fault) == ("engine_failed", True, "server")
    assert_right(desk.answer(waiting, REBUILD_S), record, reference)
    assert_right(desk.ask(sample_of()), None, reference)
    assert sampler.process.poll() is None


def test_a_killed_sampler_leaves_no_orphan(sampler):
    """The last test with the shared process: it kills it."""
    family = sampler.descendants()
    assert family

    sampler.process.kill()
    sampler.process.wait(60)

    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_a_sampler_that_is_stopped_while_its_engine_starts_leaves_promptly(tiny_model, tmp_path):
    desk = Desk(config_for(tmp_path / "s", tiny_model, engine="vllm"))
    sampler = SamplerProcess(desk)
    try:
        desk.until(sampler.descendants, START_S)
        family = sampler.descendants()
        sampler.process.terminate()

        assert sampler.process.wait(5.0) == 0
        assert psutil.wait_procs(family, timeout=60)[1] == []
    finally:
        sampler.end()
        desk.close()
