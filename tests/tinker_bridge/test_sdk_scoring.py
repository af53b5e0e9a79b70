"""What a prompt's tokens are worth: likeliest, target and alternative tokens beside a sample.

Legend: P = prompt tokens, K = tokens told of a position, V = vocabulary.
"""

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import adapter, datum, prompt, rows_of, step, tinker, tokens, types
from loractl.tests.tinker_bridge.served import MODEL

IDS = tokens(12, 21)
ONE = types.SamplingParams(max_tokens=1)


@pytest.fixture(scope="module", params=["base", "adapter", "adapter with unembedding"])
def sampler(service, request):
    if request.param == "base":
        return service.create_sampling_client(base_model=MODEL).result()
    client = adapter(service, train_unembed=request.param != "adapter")
    step(client, [datum(tokens(20, 3))])
    return client.save_weights_and_get_sampling_client().result()


def test_the_likeliest_tokens_of_a_prompt_more_than_twenty(sampler, served):
    answer = sampler.sample(prompt(*IDS), 1, ONE, topk_prompt_logprobs=30).result()

    found = answer.topk_prompt_logprobs
    rows = rows_of(sampler, IDS)
    assert found[0] is None
    assert [len(each) for each in found[1:]] == [30] * 11
    for pairs, row in zip(found[1:], rows, strict=True):
        assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
        assert np.allclose([value for _, value in pairs], np.sort(row)[::-1][:30], atol=1e-4)
        assert np.allclose([row[token] for token, _ in pairs], [value for _, value in pairs], atol=1e-4)


def test_the_likeliest_tokens_beside_the_sampled_ones(sampler):
    params = types.SamplingParams(max_tokens=5, temperature=0.0)

    (found,) = sampler.sample(prompt(*IDS), 1, params, topk_sample_logprobs=4).result().sequences

    assert len(found.topk_logprobs) == len(found.tokens) == 5
    for pairs, token, logprob in zip(found.topk_logprobs, found.tokens, found.logprobs, strict=True):
        assert len(pairs) == 4
        assert pairs[0] == (token, pytest.approx(logprob, abs=1e-4))


def test_targets_are_scored_where_they_stand(sampler):
    targets = np.full((11, 3), -1, dtype=np.int64)
    targets[:, 0] = IDS[1:]
    targets[4:7, 1] = [100, 101, 102]
    targets[9, 2] = 0
    dense = types.TensorData.from_numpy(targets)

    found = sampler.sample(prompt(*IDS), 1, ONE, True, target_prompt_logprobs=dense).result()

    expected = np.take_along_axis(rows_of(sampler, IDS), np.maximum(targets, 0), axis=1)
    expected[targets < 0] = 0
    scores = found.target_prompt_logprobs
    assert (scores.dtype, scores.shape) == ("float32", [11, 3])
    assert np.allclose(scores.to_numpy(), expected, atol=1e-4)
    assert np.allclose(scores.to_numpy()[:, 0], found.prompt_logprobs[1:], atol=1e-5)


def test_sparse_targets_are_answered_in_their_own_layout(sampler):
    rows, columns, ids = [2, 2, 7], [0, 4, 1], [9, 0, 11]
    crow = np.searchsorted(rows, np.arange(12), side="left").tolist()
    sparse = types.TensorData(
        data=ids, dtype="int64", shape=[11, 6], sparse_crow_indices=crow, sparse_col_indices=columns
    )

    found = sampler.sample(prompt(*IDS), 1, ONE, target_prompt_logprobs=sparse).result()

    scores = found.target_prompt_logprobs
    assert (scores.sparse_crow_indices, scores.sparse_col_indices) == (crow, columns)
    assert np.allclose(scores.data, rows_of(sampler, IDS)[rows, ids], atol=1e-4)


def test_alternative_tokens_are_draws_with_their_logprobs(sampler):
    params = types.SamplingParams(max_tokens=1, seed=5)

    first, again = (
        sampler.sample(prompt(*IDS), 1, params, prompt_alt_tokens_k=8).result().prompt_alt_tokens
        for _ in range(2)
    )

    drawn, scores = first.tokens.to_numpy(), first.logprobs.to_numpy()
    assert drawn.shape == scores.shape == (11, 8)
    assert np.array_equal(drawn, again.tokens.to_numpy())
    assert len({*drawn.flatten().tolist()}) > 8
    assert np.allclose(scores, np.take_along_axis(rows_of(sampler, IDS), drawn, axis=1), atol=1e-4)


def test_only_the_last_of_a_prompt_are_scored_when_asked(sampler):
    whole = sampler.sample(prompt(*IDS), 1, ONE, True, topk_prompt_logprobs=2).result()
    found = sampler.sample(
        prompt(*IDS), 1, ONE, True, topk_prompt_logprobs=2, prompt_logprobs_last_n=3
    ).result()

    assert found.prompt_logprobs[:-3] == [None] * 9
    assert np.allclose(found.prompt_logprobs[-3:], whole.prompt_logprobs[-3:], atol=1e-5)
    assert found.topk_prompt_logprobs[:-3] == [None] * 9
    assert [len(each) for each in found.topk_prompt_logprobs[-3:]] == [2, 2, 2]


def test_everything_can_be_asked_at_once_of_several_samples(sampler):
    targets = types.TensorData.from_numpy(np.array([[each] for each in IDS[1:]]))
    params = types.SamplingParams(max_tokens=3, seed=1)

    answer = sampler.sample(
        prompt(*IDS),
        3,
        params,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=5,
        topk_sample_logprobs=2,
        target_prompt_logprobs=targets,
        prompt_alt_tokens_k=2,
    ).result()

    assert len(answer.sequences) == 3
    assert all(len(each.topk_logprobs) == 3 for each in answer.sequences)
    scored = np.array(answer.prompt_logprobs[1:])
    assert np.allclose(answer.target_prompt_logprobs.to_numpy()[:, 0], scored, atol=1e-5)
    assert answer.prompt_alt_tokens.tokens.shape == [11, 2]
    assert answer.topk_prompt_logprobs[1][0][1] >= scored[0]


def test_nothing_is_told_that_was_not_asked(sampler):
    answer = sampler.sample(prompt(*IDS), 1, ONE).result()

    assert answer.prompt_logprobs is None
    assert answer.topk_prompt_logprobs is None
    assert answer.target_prompt_logprobs is None
    assert answer.prompt_alt_tokens is None
    assert answer.sequences[0].topk_logprobs is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"topk_prompt_logprobs": 100_000}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": 100_000}, "topk_sample_logprobs"),
        ({"prompt_alt_tokens_k": 100_000}, "prompt_alt_tokens"),
        ({"include_prompt_logprobs": True, "prompt_logprobs_last_n": 12}, "last_n"),
        ({"target_prompt_logprobs": types.TensorData([1, 2], "int64", [2, 1])}, "target"),
        ({"target_prompt_logprobs": types.TensorData([5000] * 11, "int64", [11, 1])}, "5000"),
    ],
)
def test_scores_that_cannot_be_had_are_the_users_mistake(sampler, asked, message):
    with pytest.raises(tinker.RequestFailedError, match=message) as failure:
        sampler.sample(prompt(*IDS), 1, ONE, **asked).result()

    assert failure.value.category == "user"
