"""Results: the SDK's own decoder reads what was written, value for value; older clients read the JSON."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loractl.bus.errors import Aborted
from loractl.bus.messages import PassResult, Sample, SampleResult
from loractl.tinker_bridge.wire import SampleCall, encode_pass, encode_sample, pass_json, sample_json
from loractl.tinker_bridge.wire.tensors import Csr

response_conv = pytest.importorskip("tinker.proto.response_conv", reason="the SDK is the oracle here")

_float32 = st.floats(width=32)


@st.composite
def passes(draw):
    """A result, and the lengths of its datums."""
    lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)), dtype=np.int64)
    columns = draw(st.sampled_from([(), (1,), (4,)]))
    shape = (int(lengths.sum()), *columns)
    values = [draw(arrays(np.float32, shape, elements=_float32)) for _ in range(2)]
    metrics = {"loss:sum": draw(st.floats(-1e9, 1e9)), "ratio:mean": draw(st.floats(0, 5))}
    return PassResult(logprobs=values[0], loss_terms=values[1], metrics=metrics), lengths


@given(made=passes())
@settings(max_examples=60, deadline=None)
def test_the_sdk_reads_a_pass_value_for_value(made):
    result, lengths = made

    output = response_conv.deserialize_forward_backward_output(
        encode_pass(result, lengths, {"ignored_inputs:max": 2.0})
    )

    assert output.metrics == {**result.metrics, "ignored_inputs:max": 2.0}
    assert output.loss_fn_output_type == "ArrayRecord"
    assert len(output.loss_fn_outputs) == lengths.size
    for name, values in (("logprobs", result.logprobs), ("elementwise_loss", result.loss_terms)):
        parts = [each[name].to_numpy() for each in output.loss_fn_outputs]
        assert [part.shape[0] for part in parts] == lengths.tolist()
        assert all(part.shape[1:] == values.shape[1:] for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), values)


def test_older_clients_read_a_pass_in_json():
    logprobs = np.array([[-1, -2], [-3, -4], [-5, -0.1]], dtype=np.float32)
    result = PassResult(logprobs=logprobs, loss_terms=-logprobs, metrics={"loss:sum": 15.1})

    read = json.loads(pass_json(encode_pass(result, np.array([1, 2]))))

    assert read["metrics"] == {"loss:sum": 15.1}
    assert read["loss_fn_output_type"] == "ArrayRecord"
    assert read["loss_fn_outputs"][0]["logprobs"] == {"data": [-1, -2], "dtype": "float32", "shape": [1, 2]}
    assert read["loss_fn_outputs"][1]["logprobs"]["shape"] == [2, 2]
    assert np.float32(read["loss_fn_outputs"][1]["elementwise_loss"]["data"][3]) == np.float32(0.1)


def call_for(prompt=4, targets=None, layout=None, **asked) -> SampleCall:
    ids = np.arange(prompt, dtype=np.int64)
    sample = Sample(adapter=None, version=None, prompt=ids, max_tokens=5, **asked)
    targets = sample.prompt_targets if targets is None else targets
    return SampleCall(message=sample, targets=targets, target_layout=layout)


def result_of(lengths=(2, 0), **more) -> SampleResult:
    sampled = sum(lengths)
    fields = {
        "version": 1,
        "engine": "torch",
        "lengths": np.array(lengths, dtype=np.int64),
        "tokens": np.arange(100, 100 + sampled, dtype=np.int64),
        "logprobs": -np.arange(sampled, dtype=np.float32),
        "texts": ("",) * len(lengths),
        "stop_reasons": ("stop", "length", "stop", "length")[: len(lengths)],
        "prompt_logprobs": np.zeros(0, dtype=np.float32),
    }
    return SampleResult(**{**fields, **more})


@st.composite
def scored_samples(draw):
    """A request for everything, and an answer to it in which some positions hold nothing."""
    prompt, k = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    sampled = sum(lengths)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def floats(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def ids(*shape):
        return random.integers(0, 2**31, shape)

    unscored = random.random(prompt) < 0.4
    unscored[0] = True
    topk, topk_logprobs, prompt_logprobs = ids(prompt, k), floats(prompt, k), floats(prompt)
    topk[unscored], topk_logprobs[unscored], prompt_logprobs[unscored] = -1, np.nan, np.nan
    targets = np.where(random.random((prompt - 1, k)) < 0.5, -1, ids(prompt - 1, k))
    target_logprobs = np.where(targets < 0, np.float32(np.nan), floats(prompt - 1, k))
    layout = None
    if draw(st.booleans()):
        rows, columns = np.nonzero(targets >= 0)
        layout = Csr(crow=np.searchsorted(rows, np.arange(prompt)), col=columns)
    call = call_for(
        prompt, targets, layout, prompt_logprobs=True, topk_prompt_logprobs=k, topk_sample_logprobs=k,
        prompt_alt_tokens=k,
    )  # fmt: skip
    result = result_of(
        lengths, tokens=ids(sampled), logprobs=floats(sampled), prompt_logprobs=prompt_logprobs,
        prompt_topk_tokens=topk, prompt_topk_logprobs=topk_logprobs,
        prompt_target_logprobs=target_logprobs, prompt_alt_tokens=ids(prompt - 1, k),
        prompt_alt_logprobs=floats(prompt - 1, k), sample_topk_tokens=ids(sampled, k),
        sample_topk_logprobs=floats(sampled, k), prompt_cached_tokens=draw(st.integers(0, prompt)),
    )  # fmt: skip
    return call, result, unscored


@given(made=scored_samples())
@settings(max_examples=60, deadline=None)
def test_the_sdk_reads_a_sample_value_for_value(made):
    call, result, unscored = made

    read = response_conv.deserialize_sample_response(encode_sample(result, call))

    ends = np.cumsum(result.lengths)
    starts = ends - result.lengths
    for sequence, reason, start, end in zip(read.sequences, result.stop_reasons, starts, ends, strict=True):
        assert sequence.stop_reason == reason
        assert sequence.tokens == result.tokens[start:end].tolist()
        assert (sequence.logprobs or []) == result.logprobs[start:end].tolist()
        if end > start:
            np.testing.assert_array_equal(
                sequence.topk_logprobs_np.token_ids, result.sample_topk_tokens[start:end]
            )
            np.testing.assert_array_equal(
                sequence.topk_logprobs_np.logprobs, result.sample_topk_logprobs[start:end]
            )
    np.testing.assert_array_equal(read.prompt_logprobs_np, result.prompt_logprobs)
    assert [each is None for each in read.prompt_logprobs] == unscored.tolist()
    assert [each is None for each in read.topk_prompt_logprobs] == unscored.tolist()
    np.testing.assert_array_equal(
        read.topk_prompt_logprobs_np.token_ids[~unscored], result.prompt_topk_tokens[~unscored]
    )
    np.testing.assert_array_equal(
        read.topk_prompt_logprobs_np.logprobs[~unscored], result.prompt_topk_logprobs[~unscored]
    )
    assert read.prompt_cache_hit_tokens == result.prompt_cached_tokens


@given(made=scored_samples())
@settings(max_examples=60, deadline=None)
def test_the_sdk_reads_target_and_alternative_tokens_value_for_value(made):
    call, result, _ = made

    read = response_conv.deserialize_sample_response(encode_sample(result, call))

    asked = call.targets
    targets = read.target_prompt_logprobs
    assert (targets.sparse_crow_indices is not None) == (call.target_layout is not None)
    assert targets.shape == list(asked.shape)
    np.testing.assert_array_equal(
        targets.to_numpy(), np.where(asked < 0, np.float32(0), result.prompt_target_logprobs)
    )
    np.testing.assert_array_equal(read.prompt_alt_tokens.tokens.to_numpy(), result.prompt_alt_tokens)
    np.testing.assert_array_equal(read.prompt_alt_tokens.logprobs.to_numpy(), result.prompt_alt_logprobs)


def test_what_was_not_asked_for_is_left_out():
    read = response_conv.deserialize_sample_response(encode_sample(result_of(), call_for()))

    assert read.prompt_logprobs is None
    assert read.topk_prompt_logprobs is None
    assert read.target_prompt_logprobs is None
    assert read.prompt_alt_tokens is None
    assert read.sequences[0].topk_logprobs is None


def test_a_prompt_of_one_token_has_nothing_to_draw_or_score():
    call = call_for(1, np.zeros((0, 3), dtype=np.int64), prompt_alt_tokens=2)

    read = response_conv.deserialize_sample_response(encode_sample(result_of(), call))

    assert read.prompt_alt_tokens.tokens.to_numpy().shape == (0, 2)
    assert read.target_prompt_logprobs.to_numpy().shape == (0, 3)


def test_a_sample_that_was_given_up_is_no_answer():
    with pytest.raises(Aborted):
        encode_sample(result_of(stop_reasons=("stop", "abort")), call_for())


def test_older_clients_read_a_sample_in_json():
    nan = np.nan
    result = result_of(
        (2, 1),
        prompt_logprobs=np.array([nan, -1, -2], dtype=np.float32),
        prompt_topk_tokens=np.array([[-1, -1], [5, 6], [0, -1]]),
        prompt_topk_logprobs=np.array([[nan, nan], [-1, -2], [-3, nan]], dtype=np.float32),
    )

    read = json.loads(
        sample_json(encode_sample(result, call_for(3, prompt_logprobs=True, topk_prompt_logprobs=2)))
    )

    assert read == {
        "type": "sample",
        "sequences": [
            {"stop_reason": "stop", "tokens": [100, 101], "logprobs": [0, -1]},
            {"stop_reason": "length", "tokens": [102], "logprobs": [-2]},
        ],
        "prompt_logprobs": [None, -1, -2],
        "topk_prompt_logprobs": [None, [[5, -1], [6, -2]], [[0, -3]]],
        "prompt_cache_hit_tokens": 0,
    }


@given(made=scored_samples())
@settings(max_examples=30, deadline=None)
def test_the_json_of_a_sample_says_what_its_protobuf_says(made):
    call, result, _ = made
    encoded = encode_sample(result, call)
    oracle = response_conv.deserialize_sample_response(encoded)

    read = json.loads(sample_json(encoded))

    assert [each["tokens"] for each in read["sequences"]] == [each.tokens for each in oracle.sequences]
    assert read["prompt_logprobs"] == oracle.prompt_logprobs
    assert read["target_prompt_logprobs"]["data"] == oracle.target_prompt_logprobs.data
    assert read["target_prompt_logprobs"].get("sparse_col_indices") == (
        oracle.target_prompt_logprobs.sparse_col_indices
    )
    assert read["prompt_alt_tokens"]["tokens"]["data"] == oracle.prompt_alt_tokens.tokens.data
