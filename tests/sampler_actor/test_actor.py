"""The sampler as a process, over real sockets: publish, sample, retire, abort, refuse, stop.

On the embedded engine, which starts fastest; `test_actor_vllm` has what depends on vLLM.
"""

import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import (
    Abort,
    ActorReady,
    AdapterPublished,
    Done,
    Drain,
    Echo,
    Echoed,
    Failed,
    Ping,
    SampleChunk,
    SampleResult,
    VersionRecord,
    VersionReleased,
    VersionServed,
)
from loractl.sampler_actor.engine import key_of
from loractl.sampler_actor.text import load_tokenizer
from loractl.tests.sampler_actor.desk import (
    ANSWER_S,
    PROMPT,
    Desk,
    SamplerProcess,
    config_for,
    other_number,
    published,
    running_sampler,
    sample_of,
)
from loractl.tests.sampler_actor.jobs import prompt_of
from loractl.tests.sampler_actor.tiny import CONTEXT, damaged

LONG = 200


@pytest.fixture(scope="module")
def started(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Desk, SamplerProcess, ActorReady]]:
    config = config_for(tmp_path_factory.mktemp("s"), tiny_model, engine="torch", max_concurrent=4)
    with running_sampler(config) as started:
        yield started


@pytest.fixture
def desk(started: tuple[Desk, SamplerProcess, ActorReady]) -> Desk:
    return started[0]


@pytest.fixture
def alice(desk: Desk, versions: dict[str, VersionRecord]) -> VersionRecord:
    return published(desk, versions["alice-1"])


@pytest.fixture
def newer(desk: Desk, versions: dict[str, VersionRecord]) -> VersionRecord:
    return published(desk, versions["alice-2"])


def test_a_ready_sampler_says_what_it_is(started):
    _, sampler, ready = started

    assert (ready.actor, ready.role, ready.pid) == ("sampler-0", "sampler", sampler.process.pid)
    assert "torch on cpu, float32" in ready.details
    assert str(CONTEXT) in ready.details


def test_a_published_version_is_served_and_its_probe_compared(desk, versions):
    desk.publish(versions["bob-1"])
    served = desk.report(VersionServed, adapter="ad-bob")

    assert (served.actor, served.version, served.engine, served.error) == ("sampler-0", 1, "torch", "")
    assert served.modules_bound == versions["bob-1"].modules
    assert 0 <= served.probe_max_abs_diff < 1e-4
    assert served.engine_reason


def test_samples_come_from_the_version_that_was_asked_for(desk, alice, newer, reference):
    for record in (None, alice, newer):
        answer = desk.ask(sample_of(record))

        assert isinstance(answer, SampleResult)
        key = key_of(record) if record else None
        assert tuple(answer.tokens) == reference.greedy(key, PROMPT, 8)
        assert answer.version == (record.number if record else 0)
        assert (answer.engine, answer.stop_reasons) == ("torch", ("length",))


def test_an_answer_says_text_logprobs_and_the_prompts_own(desk, alice, reference, tiny_model):
    request = sample_of(alice, temperature=0.5, seed=3, num_samples=2, prompt_logprobs=True)
    answer = desk.ask(request)

    assert isinstance(answer, SampleResult)
    assert list(answer.lengths) == [8, 8]
    first, second = answer.tokens[:8], answer.tokens[8:]
    assert list(first) != list(second)
    for tokens, logprobs, text in zip(
        (first, second), np.split(answer.logprobs, 2), answer.texts, strict=True
    ):
        whole = (*PROMPT, *map(int, tokens))
        expected = reference.logprobs(key_of(alice), whole, temperature=0.5)[len(PROMPT) :]
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)
        tokenizer = load_tokenizer(str(tiny_model))
        assert text == tokenizer.decode(
            list(map(int, tokens)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert math.isnan(answer.prompt_logprobs[0])
    expected = reference.logprobs(key_of(alice), PROMPT)[1:]
    np.testing.assert_allclose(answer.prompt_logprobs[1:], expected, atol=1e-4)


def test_seeds_reproduce_and_samples_differ(desk, alice):
    request = sample_of(alice, temperature=1.0, seed=11, num_samples=3)
    one, again = desk.ask(request), desk.ask(request)
    shifted = desk.ask(replace(request, seed=12, num_samples=2))

    assert list(one.tokens) == list(again.tokens)
    assert list(shifted.tokens) == list(one.tokens[8:]), "sample i uses seed + i"


def test_a_prompt_can_be_scored_alone(desk, alice, reference):
    answer = desk.ask(sample_of(alice, max_tokens=0, prompt_logprobs=True))

    assert (answer.lengths.size, answer.texts) == (0, ())
    np.testing.assert_allclose(
        answer.prompt_logprobs[1:], reference.logprobs(key_of(alice), PROMPT)[1:], atol=1e-4
    )


def test_everything_asked_of_a_prompt_is_answered(desk, alice, reference):
    size = len(PROMPT)
    targets = np.array([[3, -1]] * (size - 1))
    request = sample_of(
        alice,
        prompt_logprobs=True,
        prompt_last_n=2,
        topk_prompt_logprobs=3,
        prompt_targets=targets,
        prompt_alt_tokens=4,
        topk_sample_logprobs=2,
        num_samples=2,
        temperature=0.5,
        seed=8,
    )
    answer, again = desk.ask(request), desk.ask(request)

    assert isinstance(answer, SampleResult)
    table = reference.table(key_of(alice), PROMPT)[:-1]
    np.testing.assert_allclose(answer.prompt_target_logprobs[:, 0], table[:, 3], atol=1e-4)
    assert np.isnan(answer.prompt_target_logprobs[:, 1]).all()
    assert answer.prompt_topk_tokens.shape == answer.prompt_topk_logprobs.shape == (size, 3)
    assert list(np.isnan(answer.prompt_logprobs)) == [True] * (size - 2) + [False] * 2
    assert answer.prompt_alt_tokens.shape == (size - 1, 4)
    told = np.take_along_axis(table, answer.prompt_alt_tokens, axis=-1)
    np.testing.assert_allclose(answer.prompt_alt_logprobs, told, atol=1e-4)
    np.testing.assert_array_equal(answer.prompt_alt_tokens, again.prompt_alt_tokens)
    assert answer.sample_topk_tokens.shape == answer.sample_topk_logprobs.shape == (16, 2)
    assert (answer.sample_topk_logprobs[:, 0] >= answer.logprobs - 1e-4).all()


def test_what_was_not_asked_of_a_prompt_is_empty(desk, alice):
    answer = desk.ask(sample_of(alice, prompt_alt_tokens=1))

    assert answer.prompt_alt_tokens.size == len(PROMPT) - 1
    for other in (
        answer.prompt_logprobs,
        answer.prompt_topk_tokens,
        answer.prompt_topk_logprobs,
        answer.prompt_target_logprobs,
        answer.sample_topk_tokens,
        answer.sample_topk_logprobs,
    ):
        assert other.size == 0
    assert answer.prompt_cached_tokens == 0


def test_a_full_context_is_scored_and_its_samples_are_empty(desk, alice, reference):
    prompt = prompt_of(CONTEXT, seed=60)
    request = sample_of(alice, prompt=np.array(prompt), max_tokens=1, num_samples=2, prompt_logprobs=True)
    answer = desk.ask(request)

    assert (list(answer.lengths), answer.texts, answer.stop_reasons) == ([0, 0], ("", ""), ("length",) * 2)
    expected = reference.logprobs(key_of(alice), prompt)[1:]
    np.testing.assert_allclose(answer.prompt_logprobs[1:], expected, atol=1e-4)


def test_a_stop_string_ends_text_and_tokens(desk, alice, tiny_model):
    whole = desk.ask(sample_of(alice, max_tokens=40))
    text = whole.texts[0]
    stop = text[len(text) // 2 :][:3]
    answer = desk.ask(sample_of(alice, max_tokens=40, stop_strings=(stop,)))

    assert answer.stop_reasons == ("stop",)
    assert answer.texts[0] == text[: text.index(stop)]
    assert answer.lengths[0] < 40
    tokens = list(map(int, answer.tokens))
    assert tokens == list(map(int, whole.tokens[: len(tokens)]))
    decoded = load_tokenizer(str(tiny_model)).decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert stop in decoded, "the token that completes the stop string belongs to the output"


def test_a_stop_token_belongs_to_the_output(desk, alice):
    whole = [int(t) for t in desk.ask(sample_of(alice, max_tokens=20)).tokens]
    answer = desk.ask(sample_of(alice, max_tokens=20, stop_tokens=(whole[5],)))

    first = whole.index(whole[5])
    assert [int(t) for t in answer.tokens] == whole[: first + 1]
    assert answer.stop_reasons == ("stop",)


def test_chunks_add_up_to_the_answer(desk, alice):
    # Tokens that come while the machine does something else come in one chunk: so many do not all do.
    wanted = sample_of(alice, num_samples=2, max_tokens=100, temperature=1.0, seed=1, stream=True)
    request = desk.send(wanted)
    answer = desk.answer(request)

    chunks = [part for part in desk.parts(request) if isinstance(part, SampleChunk)]
    assert len(chunks) > 2
    for index, tokens in enumerate(np.split(answer.tokens, [answer.lengths[0]])):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert np.concatenate([chunk.tokens for chunk in mine]).tolist() == tokens.tolist()
        assert "".join(chunk.text for chunk in mine) == answer.texts[index]


def test_an_abort_ends_a_sample_with_what_there_is(desk, alice):
    request = desk.send(sample_of(alice, max_tokens=LONG, num_samples=64, stream=True))
    desk.wait(lambda e: e.request == request, ANSWER_S)

    assert desk.ask(Abort(target=request)) == Done()

    answer = desk.answer(request)
    assert isinstance(answer, SampleResult)
    assert set(answer.stop_reasons) == {"abort"}
    # Four run at one time; the others were still waiting.
    assert 0 < answer.lengths.sum() < 64 * LONG
    assert 0 in answer.lengths


def test_an_abort_is_only_for_ones_own(desk, alice):
    request = desk.send(sample_of(alice, max_tokens=40))

    assert desk.ask(Abort(target=request), tenant=TenantId("mallory")) == Done()
    assert desk.ask(Abort(target=RequestId("nothing"))) == Done()
    assert desk.answer(request).stop_reasons == ("length",)


def test_a_light_tenant_is_served_between_a_heavy_ones_samples(desk):
    heavy = desk.send(sample_of(max_tokens=60, num_samples=40), tenant=TenantId("heavy"))
    light = desk.send(sample_of(max_tokens=4), tenant=TenantId("light"))

    for request in (light, heavy):
        desk.answer(request)

    assert [e.request for e in desk.heard if e.last and e.request in (light, heavy)] == [light, heavy]


def test_a_second_publish_does_not_disturb_a_stream_in_flight(desk, alice, reference):
    request = desk.send(sample_of(alice, max_tokens=LONG, stream=True))
    desk.wait(lambda e: e.request == request, ANSWER_S)

    published(desk, other_number(alice, 20))

    answer = desk.answer(request)
    reference.assert_greedy(key_of(alice), PROMPT, tuple(map(int, answer.tokens)))
    assert answer.stop_reasons == ("length",)


def test_a_retired_version_goes_only_when_its_stream_has_ended(desk, newer, reference):
    record = published(desk, other_number(newer, 3, adapter="ad-carol"))
    request = desk.send(sample_of(record, max_tokens=LONG, stream=True))
    desk.wait(lambda e: e.request == request, ANSWER_S)

    desk.retire(record)
    answer = desk.answer(request)
    released = desk.report(VersionReleased, adapter="ad-carol")

    reference.assert_greedy(key_of(newer), PROMPT, tuple(map(int, answer.tokens)))
    assert answer.stop_reasons == ("length",)
    assert released.version == 3
    refused = desk.ask(sample_of(record))
    assert isinstance(refused, Failed)
    assert refused.code == "version_not_found"


def test_a_version_that_no_event_told_of_is_asked_for(desk, versions):
    record = other_number(versions["bob-1"], 1, adapter="ad-dave")
    # Its event is lost: only the table has it.
    desk.table[record.adapter, 1] = record
    desk.last_event += 1

    assert isinstance(desk.ask(sample_of(record)), SampleResult)


def test_a_version_that_nobody_knows_is_refused(desk, alice):
    refused = desk.ask(sample_of(alice, version=99))

    assert isinstance(refused, Failed)
    assert (refused.code, refused.fault) == ("version_not_found", "user")


def test_bad_files_fail_their_version_and_nothing_else(desk, alice, tmp_path):
    broken = other_number(alice, 30, directory=str(damaged(alice, tmp_path / "broken")))
    desk.publish(broken)
    served = desk.report(VersionServed, version=30)
    refused = desk.ask(sample_of(broken))

    assert "digest" in served.error
    assert isinstance(refused, Failed)
    assert (refused.code, refused.retryable) == ("publish_failed", False)
    assert isinstance(desk.ask(sample_of(alice)), SampleResult)


def test_a_version_that_scores_differently_is_not_served(desk, alice):
    wrong = other_number(alice, 31, probe_logprobs=tuple(x - 1 for x in alice.probe_logprobs))
    desk.publish(wrong)
    served = desk.report(VersionServed, version=31)

    assert "probe_tolerance" in served.error
    assert desk.ask(sample_of(wrong)).code == "publish_failed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": np.array([], np.int64)}, "invalid_data"),
        ({"prompt": np.array([10_000])}, "invalid_data"),
        ({"prompt": np.zeros(CONTEXT, np.int64)}, "invalid_data"),
        ({"max_tokens": 0}, "invalid_request"),
        ({"temperature": -1.0}, "invalid_request"),
    ],
    ids=["empty", "vocabulary", "long", "no tokens", "temperature"],
)
def test_what_cannot_be_sampled_is_refused(desk, changes, code):
    refused = desk.ask(sample_of(**changes))

    assert isinstance(refused, Failed)
    assert refused.code == code


def test_other_requests_are_echoed_or_refused_by_name(desk):
    payload = np.array([1, 2, 3], np.uint8)
    echoed = desk.ask(Echo(payload=payload))
    refused = desk.ask(Ping())

    assert isinstance(echoed, Echoed)
    assert echoed.payload.tolist() == [1, 2, 3]
    assert refused.code == "not_supported"


def test_events_after_a_gap_are_caught_up_with(desk, versions):
    record = other_number(versions["bob-1"], 1, adapter="ad-erin")
    desk.table[record.adapter, 1] = record
    desk.last_event += 1
    later = other_number(versions["bob-1"], 2, adapter="ad-erin")
    desk.table[later.adapter, 2] = later
    desk.last_event += 1
    desk._publish(AdapterPublished(number=desk.last_event, record=later))

    assert desk.report(VersionServed, adapter="ad-erin").version == 2
    assert isinstance(desk.ask(sample_of(record)), SampleResult)


def test_a_version_is_loaded_again_for_as_many_samples_as_run_at_one_time(
    tiny_model, tmp_path, versions, reference
):
    config = config_for(tmp_path / "s", tiny_model, engine="torch", max_concurrent=2, max_loaded=1)
    with running_sampler(config) as (desk, _, _):
        evicted = published(desk, versions["alice-1"])
        published(desk, versions["bob-1"])

        answer = desk.ask(sample_of(evicted, num_samples=2))

        assert answer.lengths.tolist() == [8, 8]
        reference.assert_greedy(key_of(evicted), PROMPT, tuple(map(int, answer.tokens[:8])))


def test_a_drained_sampler_answers_everything_and_leaves(tiny_model, tmp_path):
    with running_sampler(config_for(tmp_path / "s", tiny_model, engine="torch", max_concurrent=1)) as started:
        desk, sampler, _ = started
        short = desk.send(sample_of(max_tokens=4))
        long = [desk.send(sample_of(max_tokens=LONG, num_samples=64)) for _ in range(3)]
        desk.tell(Drain())

        assert isinstance(desk.answer(short), SampleResult)
        refused = [desk.answer(request) for request in long]

        assert all((r.code, r.retryable) == ("actor_stopping", True) for r in refused)
        assert sampler.process.wait(ANSWER_S) == 0


def test_a_terminated_sampler_leaves_promptly(started):
    """The last test here: it ends the process that the others share."""
    _, sampler, _ = started
    sampler.process.send_signal(signal.SIGTERM)

    assert sampler.process.wait(5.0) == 0
