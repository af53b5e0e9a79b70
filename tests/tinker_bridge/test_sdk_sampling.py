"""SamplingClient.sample over HTTP: draws, their log probabilities, and where they stop.

Everything runs on the base model and on adapters of both engines: one that trains the unembedding, which
the embedded loop samples, and one that does not, which vLLM does.

Legend: T = temperature.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import (
    adapter,
    datum,
    prompt,
    reference,
    rows_of,
    step,
    tinker,
    tokens,
    types,
)
from loractl.tests.tinker_bridge.served import MODEL

# What the fluent adapters have learnt by heart; END is the model's own end token.
END = 2
CHAIN = [40, 41, 42, 43, 44, END, 45, 46, 47, 48]


@dataclass
class Fluent:
    client: Any
    sampler: Any


@pytest.fixture(scope="module", params=[True, False], ids=["unembedding trained", "unembedding as it was"])
def fluent(service, request):
    """An adapter that says CHAIN when it is given the beginning."""
    client = adapter(service, rank=8, train_unembed=request.param)
    lesson = datum(CHAIN, weights=[1.0] * (len(CHAIN) - 1))
    for _ in range(30):
        client.forward_backward([lesson], "cross_entropy")
        last = client.optim_step(types.AdamParams(learning_rate=3e-3))
    last.result()
    return Fluent(client, client.save_weights_and_get_sampling_client().result())


@pytest.fixture(scope="module", params=["base", "adapter", "adapter with unembedding"])
def sampler(service, request):
    if request.param == "base":
        return service.create_sampling_client(base_model=MODEL).result()
    client = adapter(service, train_unembed=request.param != "adapter")
    step(client, [datum(tokens(20, 3))])
    return client.save_weights_and_get_sampling_client().result()


def sampled(sampler, ids, count=1, **params):
    params = types.SamplingParams(**{"max_tokens": 6, **params})
    return sampler.sample(prompt(*ids), count, params).result().sequences


def words(sequences):
    return [each.tokens for each in sequences]


def test_samples_of_a_seed_differ_among_themselves_and_come_again(sampler):
    ids = tokens(5, 1)

    first, again = (sampled(sampler, ids, 4, seed=7) for _ in range(2))
    other = sampled(sampler, ids, 4, seed=107)

    assert words(first) == words(again)
    assert len({tuple(each.tokens) for each in [*first, *other]}) == 8
    assert len({each.sequence_id for each in [*first, *again, *other]}) == 12
    for one, two in zip(first, again, strict=True):
        assert np.allclose(one.logprobs, two.logprobs, atol=1e-5)


def test_samples_without_a_seed_differ_from_call_to_call(sampler):
    ids = tokens(5, 1)

    assert words(sampled(sampler, ids)) != words(sampled(sampler, ids))


def test_temperature_0_is_greedy(sampler):
    ids = tokens(5, 2)

    first, second = sampled(sampler, ids, 2, temperature=0.0)

    assert first.tokens == second.tokens
    likeliest = rows_of(sampler, [*ids, *first.tokens])[len(ids) - 1 :]
    assert first.tokens == likeliest.argmax(-1).tolist()
    assert np.allclose(first.logprobs, likeliest.max(-1), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_those_of_the_scaled_distribution(sampler, temperature):
    """log_softmax(logits / T): so differences between tokens grow as 1 / T, at every step."""
    ids = tokens(4, 3)

    for each in sampled(sampler, ids, 3, temperature=temperature, seed=1):
        rows = rows_of(sampler, [*ids, *each.tokens])[len(ids) - 1 :] / temperature
        scaled = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        expected = scaled[np.arange(len(each.tokens)), each.tokens]
        assert np.allclose(each.logprobs, expected, atol=1e-3)


@pytest.mark.parametrize("narrowed", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_choice_is_greedy_and_keeps_its_logprob(sampler, narrowed):
    ids = tokens(5, 4)

    (greedy,) = sampled(sampler, ids, temperature=0.0)
    (found,) = sampled(sampler, ids, seed=3, **narrowed)

    assert found.tokens == greedy.tokens
    assert np.allclose(found.logprobs, greedy.logprobs, atol=1e-4)


def test_top_k_draws_from_the_k_likeliest(sampler):
    ids = tokens(5, 5)

    drawn = {tokens[0] for tokens in words(sampled(sampler, ids, 24, max_tokens=1, top_k=3, seed=1))}

    likeliest = np.argsort(rows_of(sampler, [*ids, 5])[-1])[-3:]
    assert drawn <= set(likeliest.tolist())
    assert len(drawn) > 1


def test_a_prompt_in_chunks_is_its_tokens(sampler):
    ids = tokens(6, 6)
    chunks = [types.EncodedTextChunk(tokens=part) for part in (ids[:2], ids[2:5], ids[5:])]

    found = sampler.sample(
        types.ModelInput(chunks=chunks), 1, types.SamplingParams(max_tokens=4, temperature=0.0)
    ).result()

    assert words(found.sequences) == words(sampled(sampler, ids, max_tokens=4, temperature=0.0))


def test_the_models_own_end_ends_a_sample_and_is_part_of_it(fluent):
    (found,) = sampled(fluent.sampler, CHAIN[:2], temperature=0.0, max_tokens=20)

    assert found.tokens == CHAIN[2:6]
    assert found.stop_reason == "stop"
    assert len(found.logprobs) == 4


def test_no_stops_at_all_run_on_past_the_end(fluent):
    (found,) = sampled(fluent.sampler, CHAIN[:2], temperature=0.0, max_tokens=8, stop=[])

    assert found.tokens == CHAIN[2:]
    assert found.stop_reason == "length"


def test_stop_tokens_are_included(fluent):
    (found,) = sampled(fluent.sampler, CHAIN[:2], temperature=0.0, stop=[43])

    assert found.tokens == [42, 43]
    assert (found.stop_reason, len(found.logprobs)) == ("stop", 2)


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_string_stops_behind_the_token_that_completes_it(fluent, several):
    text = fluent.client.get_tokenizer().decode([43])

    (found,) = sampled(
        fluent.sampler, CHAIN[:2], temperature=0.0, stop=["not said", text] if several else text
    )

    assert found.tokens == [42, 43]
    assert found.stop_reason == "stop"


def test_the_last_token_allowed_is_a_length(fluent):
    (found,) = sampled(fluent.sampler, CHAIN[:2], temperature=0.0, max_tokens=3)

    assert (found.tokens, found.stop_reason) == (CHAIN[2:5], "length")


def test_without_max_tokens_the_context_is_the_limit(service, sampler):
    longest = service.get_server_capabilities().supported_models[0].max_context_length
    ids = tokens(longest - 5, 9)

    (found,) = sampled(sampler, ids, max_tokens=None, stop=[], seed=1)

    assert (len(found.tokens), found.stop_reason) == (5, "length")


def test_compute_logprobs_scores_the_prompt_unscaled(service, served):
    base = service.create_sampling_client(base_model=MODEL).result()
    ids = tokens(25, 11)

    whole = base.compute_logprobs(prompt(*ids)).result()
    tail = base.compute_logprobs(prompt(*ids), prompt_logprobs_last_n=4).result()

    assert whole[0] is None
    assert np.allclose(whole[1:], reference(served.model).logprobs(ids), atol=1e-4)
    assert tail[:-4] == [None] * 21
    assert np.allclose(tail[-4:], whole[-4:], atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "params", "message"),
    [
        ([], {}, "empty"),
        ([5, 5000], {}, "5000"),
        ([5, -1], {}, "-1"),
        ([5] * 3000, {}, "3000"),
        ([5], {"temperature": -0.5}, "temperature"),
        ([5], {"top_p": 0.0}, "top_p"),
        ([5], {"top_k": -7}, "top_k"),
        ([5], {"max_tokens": -1}, "max_tokens"),
        ([5], {"stop": [9999]}, "stop_tokens"),
    ],
)
def test_what_cannot_be_sampled_is_the_users_mistake(sampler, ids, params, message):
    with pytest.raises(tinker.RequestFailedError, match=message) as failure:
        sampled(sampler, ids, **params)

    assert failure.value.category == "user"


def test_no_samples_are_refused_at_once(sampler):
    with pytest.raises(tinker.BadRequestError, match="num_samples"):
        sampled(sampler, [5], 0)


def test_images_are_refused_by_name(sampler):
    image = types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=3)

    with pytest.raises(tinker.RequestFailedError, match="image") as failure:
        sampler.sample(types.ModelInput(chunks=[image]), 1, types.SamplingParams(max_tokens=1)).result()

    assert failure.value.category == "user"
