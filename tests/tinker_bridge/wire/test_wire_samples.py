"""asample requests: what the SDK asks for stands in the bus message."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.errors import InvalidData, InvalidRequest, LoractlError, NotSupported
from loractl.tinker_bridge.wire import decode_sample, peek_sample

tinker = pytest.importorskip("tinker", reason="the SDK is the oracle here")


def as_asked(prompt=(1, 2, 3), *, params=None, **more) -> bytes:
    """The body that the SDK posts."""
    from tinker._compat import model_dump
    from tinker.types.sample_request import SampleRequest

    request = SampleRequest(
        prompt=tinker.types.ModelInput.from_ints(list(prompt)),
        sampling_params=tinker.types.SamplingParams(**(params or {})),
        sampling_session_id="s:sample:0",
        seq_id=0,
        **more,
    )
    return json.dumps(model_dump(request, exclude_unset=False, exclude_none=True, mode="json")).encode()


def message_of(body: bytes, context_tokens: int = 64):
    return decode_sample(body, context_tokens=context_tokens).message


def test_a_plain_request_has_the_defaults_of_the_sdk():
    message = message_of(as_asked())

    np.testing.assert_array_equal(message.prompt, [1, 2, 3])
    assert message.max_tokens == 64
    assert (message.temperature, message.top_k, message.top_p, message.seed) == (1.0, -1, 1.0, None)
    assert (message.stop_tokens, message.stop_strings) == (None, ())
    assert (message.adapter, message.version) == (None, None)
    assert not message.prompt_logprobs
    assert message.prompt_last_n is None


def test_everything_that_can_be_asked_arrives():
    message = message_of(
        as_asked(
            params={"max_tokens": 7, "temperature": 0.5, "top_k": 9, "top_p": 0.25, "seed": 11},
            num_samples=4, prompt_logprobs=True, topk_prompt_logprobs=3, topk_sample_logprobs=2,
            prompt_alt_tokens_k=5, prompt_logprobs_last_n=2, record_stability_info=True,
        )
    )  # fmt: skip

    assert (message.max_tokens, message.temperature, message.top_k) == (7, 0.5, 9)
    assert (message.top_p, message.seed, message.num_samples) == (0.25, 11, 4)
    assert message.prompt_logprobs
    assert (message.topk_prompt_logprobs, message.topk_sample_logprobs) == (3, 2)
    assert (message.prompt_alt_tokens, message.prompt_last_n) == (5, 2)


@pytest.mark.parametrize(
    ("stop", "tokens", "strings", "end_tokens_too"),
    [
        (None, None, (), False),
        ([], (), (), False),
        ("\n", None, ("\n",), False),
        (["a", "b"], None, ("a", "b"), False),
        ([3, 4], (3, 4), (), True),
    ],
)
def test_stops_leave_the_end_tokens_alone_unless_the_list_is_empty(stop, tokens, strings, end_tokens_too):
    message = message_of(as_asked(params={"stop": stop}))

    assert (message.stop_tokens, message.stop_strings) == (tokens, strings)
    assert message.keep_end_tokens == end_tokens_too


def test_tokens_and_strings_may_stand_in_one_list():
    body = json.loads(as_asked())
    body["sampling_params"]["stop"] = ["a", 3]

    message = message_of(json.dumps(body).encode())

    assert (message.stop_tokens, message.stop_strings, message.keep_end_tokens) == ((3,), ("a",), True)


def test_older_clients_leave_most_fields_out():
    body = b'{"prompt": {"chunks": [{"tokens": [5]}, {"tokens": [6]}]}, "sampling_params": {}}'

    np.testing.assert_array_equal(message_of(body).prompt, [5, 6])
    assert peek_sample(body).sampling_session_id is None
    assert peek_sample(body).num_samples == 1


def test_who_asks_is_read_whatever_is_wrong_with_the_rest():
    envelope = peek_sample(b'{"prompt": 5, "sampling_session_id": "s", "seq_id": 9, "num_samples": 3}')

    assert (envelope.sampling_session_id, envelope.seq_id, envelope.num_samples) == ("s", 9, 3)


def test_numbers_of_cloned_clients_are_large():
    assert peek_sample(b'{"sampling_session_id": "s", "seq_id": 9223372036854775807}').seq_id == 2**63 - 1


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    density=st.sampled_from([0.05, 0.9]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_targets_arrive_dense_with_minus_one_where_nothing_is_asked(rows, columns, density, seed):
    import torch

    random = np.random.default_rng(seed)
    targets = np.where(random.random((rows, columns)) < density, random.integers(0, 9, (rows, columns)), -1)
    asked = tinker.types.TensorData.from_torch_sparse(torch.from_numpy(targets), pad_value=-1)
    field = {"data": asked.data, "dtype": asked.dtype, "shape": asked.shape}
    if asked.sparse_crow_indices is not None:
        field["sparse_crow_indices"] = asked.sparse_crow_indices
        field["sparse_col_indices"] = asked.sparse_col_indices
    body = json.loads(as_asked(range(rows + 1)))
    body["target_prompt_logprobs"] = field

    call = decode_sample(json.dumps(body).encode(), context_tokens=64)

    np.testing.assert_array_equal(call.targets, targets)
    # A sampler is not asked for nothing.
    asked_for = targets if (targets >= 0).any() else np.zeros((0, 0))
    np.testing.assert_array_equal(call.message.prompt_targets, asked_for)
    assert (call.target_layout is not None) == (asked.sparse_crow_indices is not None)


def targets(shape, dtype="int64"):
    return {"data": [1] * int(np.prod(shape)), "dtype": dtype, "shape": list(shape)}


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (InvalidData, "prompt is empty", {"prompt": {"chunks": []}}),
        (NotSupported, "'image'", {"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}}),
        (NotSupported, "asset", {"prompt": {"chunks": [{"type": "image_asset_pointer", "location": ""}]}}),
        (NotSupported, "'dmel'", {"prompt": {"chunks": [{"type": "dmel", "dmel": ""}]}}),
        (InvalidRequest, "without tokens", {"prompt": {"chunks": [{"type": "encoded_text"}]}}),
        (InvalidRequest, "tokens", {"prompt": {"chunks": [{"tokens": [2**63]}]}}),
        (InvalidRequest, "tokens", {"prompt": {"chunks": [{"tokens": ["a"]}]}}),
        (InvalidRequest, "sampling_params", {"sampling_params": {"seed": 2**64}}),
        (InvalidRequest, "sampling_params", {"sampling_params": None}),
        (InvalidRequest, "needs prompt_logprobs", {"prompt_logprobs_last_n": 1}),
        (InvalidRequest, "must lie in 1 to 2", {"prompt_logprobs_last_n": 3, "prompt_logprobs": True}),
        (InvalidRequest, "at least 0", {"topk_prompt_logprobs": -1}),
        (InvalidRequest, "at least 0", {"prompt_alt_tokens_k": -1}),
        (InvalidData, r"shape \(2, K\)", {"target_prompt_logprobs": targets((3, 1))}),
        (InvalidData, r"shape \(2, K\)", {"target_prompt_logprobs": targets((2,))}),
        (InvalidData, "int64", {"target_prompt_logprobs": targets((2, 1), "float32")}),
        (InvalidData, "dtype 'int8'", {"target_prompt_logprobs": targets((2, 1), "int8")}),
        (InvalidData, "sparse_col_indices", {"target_prompt_logprobs": {**targets((2, 1)), "sparse_crow_indices": [0]}}),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_named(error, words, change):
    body = {**json.loads(as_asked()), **change}

    with pytest.raises(error, match=words) as caught:
        message_of(json.dumps(body).encode())

    assert len(caught.value.message) < 500


@given(body=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_end_as_our_errors(body):
    for read in (peek_sample, message_of):
        with pytest.raises(LoractlError):
            read(b"\x00" + body)


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_damaged_requests_end_as_our_errors(flips):
    body = bytearray(as_asked(params={"stop": ["a"], "seed": 3}, topk_prompt_logprobs=2))
    for place, patch in flips:
        start = place % len(body)
        body[start : start + len(patch)] = patch

    faults = []
    for read in (peek_sample, message_of):
        try:
            read(bytes(body))
        except LoractlError as error:
            faults.append(error.fault)

    assert set(faults) <= {"user"}


def with_targets(shape: list[int], **more: object) -> bytes:
    """A few bytes that claim as many targets as they like."""
    targets = {"data": [], "dtype": "int64", "shape": shape, "sparse_crow_indices": [0] * (shape[0] + 1)}
    return json.dumps(
        {
            "sampling_session_id": "s",
            "seq_id": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1] * (shape[0] + 1)}]},
            "sampling_params": {},
            "target_prompt_logprobs": {**targets, "sparse_col_indices": []},
            **more,
        }
    ).encode()


def test_targets_weigh_what_they_grow_to_and_have_the_samplers_bound():
    assert peek_sample(with_targets([1, 2**20])).target_bytes == 8 * 2**20
    assert peek_sample(with_targets([1, 2**24])).target_bytes == 8 * 2**22
    assert message_of(with_targets([1, 2**22])).prompt_targets.size == 0
    with pytest.raises(InvalidData, match="more than 4194304 cells"):
        decode_sample(with_targets([1, 2**22 + 1]), context_tokens=64)


@pytest.mark.parametrize("targets", [None, 5, "x", [], {"shape": "x"}, {"shape": [1]}, {"shape": [1, 2, 3]}])
def test_targets_that_are_none_weigh_nothing(targets: object):
    assert peek_sample(with_targets([1, 1], target_prompt_logprobs=targets)).target_bytes == 0


def test_a_prompt_that_is_longer_than_any_context_is_refused_here():
    with pytest.raises(InvalidData, match="sequence length 65 exceeds max 64"):
        message_of(as_asked(range(65)))
