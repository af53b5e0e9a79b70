"""Sampling clients over HTTP: what each one is bound to, how long it stays so, and its copies."""

import asyncio
import copy
import subprocess
import sys

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import (
    RATE,
    adapter,
    datum,
    logprobs,
    near,
    prompt,
    same,
    step,
    text,
    tinker,
    tokens,
    types,
)
from loractl.tests.tinker_bridge.served import MODEL

IDS = tokens(12, 31)
DATA = [datum(IDS)]


def scores(sampler, ids=IDS):
    return np.array(sampler.compute_logprobs(prompt(*ids)).result()[1:])


@pytest.fixture(scope="module")
def trained(service):
    client = adapter(service)
    step(client, [text(20, 3)])
    return client


def test_a_client_of_the_base_model_knows_its_name(service):
    base = service.create_sampling_client(base_model=MODEL).result()

    assert base.get_base_model() == MODEL
    assert asyncio.run(base.get_base_model_async()) == MODEL


def test_every_kind_of_path_leads_to_the_same_weights(service, trained):
    """Of a sampler checkpoint, of a training checkpoint, and of none: an unnamed snapshot."""
    named = trained.save_weights_for_sampler("for-sampling").result().path
    saved = trained.save_state("state").result().path
    snapshot = trained.save_weights_and_get_sampling_client().result()

    found = [scores(service.create_sampling_client(model_path=path).result()) for path in (named, saved)]
    found.append(scores(trained.create_sampling_client(named).result()))

    expected = logprobs(trained, DATA)
    for each in [*found, scores(snapshot)]:
        assert near([each], expected, 1e-4)
    assert not near([scores(service.create_sampling_client(base_model=MODEL).result())], expected, 1e-2)


def test_a_client_made_by_path_learns_its_base_model_from_the_server(service, trained):
    path = trained.save_weights_for_sampler("asked").result().path

    sampler = service.create_sampling_client(model_path=path).result()

    assert sampler.get_base_model() == MODEL


@pytest.mark.parametrize(
    "path", ["tinker://nobody:train:0/sampler_weights/none", "tinker://nobody:train:0/weights/none"]
)
def test_a_path_that_leads_nowhere_fails_at_once(service, path):
    with pytest.raises(tinker.NotFoundError, match="checkpoint"):
        service.create_sampling_client(model_path=path).result()


def test_another_base_model_fails_at_once(service):
    with pytest.raises(tinker.BadRequestError, match="other/model"):
        service.create_sampling_client(base_model="other/model").result()


@pytest.mark.parametrize("train_unembed", [True, False])
def test_a_snapshot_stays_as_it_was_while_the_trainer_goes_on(service, train_unembed):
    client = adapter(service, train_unembed=train_unembed)
    step(client, DATA)
    running = client.save_weights_and_get_sampling_client()
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(RATE)
    frozen = running.result()
    before = scores(frozen)
    greedy = types.SamplingParams(max_tokens=6, temperature=0.0)
    said = frozen.sample(prompt(*IDS[:4]), 1, greedy).result().sequences[0].tokens

    for _ in range(4):
        step(client, DATA)
    newest = client.save_weights_and_get_sampling_client().result()

    assert np.array_equal(scores(frozen), before)
    assert frozen.sample(prompt(*IDS[:4]), 1, greedy).result().sequences[0].tokens == said
    assert scores(newest).sum() > before.sum()


def test_an_inflight_client_follows_and_a_snapshot_does_not(service):
    client = adapter(service)
    step(client, DATA)
    snapshot = client.save_weights_and_get_sampling_client().result()
    first = client.save_weights_and_get_sampling_client(kind="inflight").result()
    before = scores(first)
    for _ in range(3):
        step(client, DATA)

    second = client.save_weights_and_get_sampling_client(kind="inflight").result()

    expected = logprobs(client, DATA)
    assert near([scores(second)], expected, 1e-4)
    assert near([scores(first)], expected, 1e-4)
    assert np.array_equal(scores(snapshot), before)


def test_sampling_goes_on_after_the_training_that_was_queued_behind_it(service):
    """The weights are those of the place in the pipeline where they were asked for."""
    eager, patient = adapter(service), adapter(service)

    samplers = []
    for _ in range(3):
        eager.forward_backward(DATA, "cross_entropy")
        eager.optim_step(RATE)
        samplers.append(eager.save_weights_and_get_sampling_client())

    for sampler in samplers:
        step(patient, DATA)
        assert near([scores(sampler.result())], logprobs(patient, DATA), 1e-4)


def test_copies_of_a_client_are_clients_of_their_own(trained):
    """A copy is what pickling makes; each one's requests are told apart, so none gets another's answer."""
    original = trained.save_weights_and_get_sampling_client().result()
    copies = [copy.copy(original) for _ in range(2)]
    copies += [tinker.SamplingClient.from_sampler_handle(original.get_sampler_handle()) for _ in range(2)]

    prompts = [tokens(6, 50 + number) for number in range(len(copies))]
    found = [scores(each, ids) for each, ids in zip(copies, prompts, strict=True)]

    assert same(found, [scores(original, ids) for ids in prompts])


def test_a_handle_leads_another_process_to_the_sampler_and_its_tokenizer(trained, served):
    """The tokenizer is found by the model's name alone, in the hub's cache, as nobody tells more there."""
    sampler = trained.save_weights_and_get_sampling_client().result()
    asks = (
        "import sys, tinker;"
        "client = tinker.SamplingClient.from_sampler_handle(sys.argv[1]);"
        "ids = client.get_tokenizer().encode(sys.argv[2]);"
        "print(*client.compute_logprobs(tinker.ModelInput.from_ints(ids)).result()[1:])"
    )
    said = "Hello there, how are you?"

    there = subprocess.run(
        [sys.executable, "-c", asks, sampler.get_sampler_handle(), said],
        env=served.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )

    ids = trained.get_tokenizer().encode(said)
    assert np.array_equal(np.array(there.stdout.split(), dtype=float), scores(sampler, ids)), there.stderr


def test_many_samples_at_once_are_each_their_own(trained):
    sampler = trained.save_weights_and_get_sampling_client().result()
    greedy = types.SamplingParams(max_tokens=3, temperature=0.0)
    prompts = [tokens(3 + number % 5, number) for number in range(60)]

    running = [sampler.sample(prompt(*ids), 1, greedy) for ids in prompts]
    found = [each.result().sequences[0] for each in running]

    again = sampler.sample(prompt(*prompts[17]), 1, greedy).result().sequences[0]
    assert found[17].tokens == again.tokens
    assert len({each.sequence_id for each in found}) == 60


def test_a_cancelled_sample_ends_and_the_next_one_is_answered(trained):
    sampler = trained.save_weights_and_get_sampling_client().result()
    endless = types.SamplingParams(max_tokens=None, stop=[])

    async def cancel() -> None:
        running = asyncio.ensure_future(_sampled(sampler, endless))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())

    short = types.SamplingParams(max_tokens=2)
    assert len(sampler.sample(prompt(5, 6), 1, short).result().sequences[0].tokens) == 2


async def _sampled(sampler, params):
    return await sampler.sample(prompt(5, 6), 1, params)


def test_stability_info_is_taken_and_trained_with(service, trained):
    """The SDK's own way for stable_reinforce: sequences are referred to by their ids."""
    sampler = service.create_sampling_client(
        model_path=trained.save_weights_for_sampler("stable").result().path, record_stability_info=True
    ).result()
    ids = tokens(4, 61)
    params = types.SamplingParams(max_tokens=4, seed=1, stop=[])
    (found,) = sampler.sample(prompt(*ids), 1, params).result().sequences
    whole = [*ids, *found.tokens]
    zeros = [0.0] * (len(ids) - 1)
    client = adapter(service)
    given = datum(
        whole, logprobs=[*zeros, *found.logprobs], advantages=[*zeros, *([1.0] * len(found.tokens))]
    ).with_provenance(
        model_input=[
            types.PromptProvenanceSpan(sequence_id=found.sequence_id, offset=0, length=len(ids)),
            types.SampledProvenanceSpan(
                sequence_id=found.sequence_id, offset=0, length=len(found.tokens) - 1
            ),
        ],
        loss_fn_inputs=[
            types.PromptProvenanceSpan(sequence_id=found.sequence_id, offset=1, length=len(ids) - 1),
            types.SampledProvenanceSpan(sequence_id=found.sequence_id, offset=0, length=len(found.tokens)),
        ],
    )

    output = step(client, [given], "stable_reinforce")

    assert np.isfinite(output.metrics["loss:sum"])
