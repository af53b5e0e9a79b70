"""forward_backward requests: what the SDK wrote arrives as the message says, value for value."""

import json

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.codec import decode, encode
from loractl.bus.config import LimitsConfig
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import Envelope
from loractl.tests.tinker_bridge.wire.asked import (
    JSON,
    PROTOBUF,
    RL_LOSSES,
    as_bytes,
    as_json,
    datum,
    inputs_of,
    reinforced,
    rewarded,
    simple,
    supervised,
)
from loractl.tinker_bridge.wire import decode_forward_backward, peek_forward_backward, to_message
from loractl.tinker_bridge.wire import tinker_pb2 as pb


def message_of(body: bytes, content_type: str = PROTOBUF, **more):
    call = decode_forward_backward(body, content_type, **more)
    return to_message(call, adapter=AdapterId("a"), lane=LaneId("l"), seq=4)


def end_to_end(data, name, missing=None):
    rows = [inputs_of(made).get(name, missing) for made in data]
    sizes = [inputs_of(made)["target_tokens"].shape for made in data]
    return np.concatenate(
        [np.full(size, row) if np.isscalar(row) else row for row, size in zip(rows, sizes, strict=True)]
    )


def assert_same_tokens(message, data):
    np.testing.assert_array_equal(message.lengths, [made.model_input.length for made in data])
    np.testing.assert_array_equal(
        message.tokens, np.concatenate([np.array(made.model_input.to_ints(), np.int64) for made in data])
    )
    np.testing.assert_array_equal(message.targets, end_to_end(data, "target_tokens"))


@given(data=supervised(), as_protobuf=st.booleans())
@settings(max_examples=60, deadline=None)
def test_datums_for_cross_entropy_arrive_whole_and_dense(data, as_protobuf):
    if as_protobuf:
        message = message_of(as_bytes(data))
    else:
        message = message_of(json.dumps(as_json(data)).encode(), JSON)

    assert message.loss == "cross_entropy"
    assert_same_tokens(message, data)
    np.testing.assert_array_equal(message.weights, end_to_end(data, "weights", missing=1.0))
    assert message.weights.dtype == np.float32
    assert message.targets.dtype == message.tokens.dtype == message.lengths.dtype == np.int64
    assert message.old_logprobs.size == message.advantages.size == message.ratio_mask.size == 0


@given(data=reinforced(), loss=st.sampled_from(RL_LOSSES), as_protobuf=st.booleans())
@settings(max_examples=60, deadline=None)
def test_datums_for_the_other_losses_arrive_whole(data, loss, as_protobuf):
    chosen = {"clip_low_threshold": 0.5}
    if as_protobuf:
        message = message_of(as_bytes(data, loss, chosen))
    else:
        message = message_of(json.dumps(as_json(data, loss, chosen)).encode(), JSON)

    assert message.loss == loss
    assert message.loss_config == chosen
    assert_same_tokens(message, data)
    np.testing.assert_array_equal(message.old_logprobs, end_to_end(data, "logprobs"))
    np.testing.assert_array_equal(message.advantages, end_to_end(data, "advantages"))
    np.testing.assert_array_equal(message.weights, end_to_end(data, "mask", missing=1.0))


def test_the_message_survives_the_bus():
    message = message_of(as_bytes([simple(), simple(2)]))

    frames = encode(Envelope(request=RequestId("r"), tenant=TenantId("t"), body=message))
    back = decode([bytes(frame) for frame in frames], LimitsConfig()).body

    np.testing.assert_array_equal(back.targets, [0, 1, 2, 0, 1])


def test_wide_sparse_targets_are_really_sparse_on_the_way():
    import torch

    targets = torch.zeros((20, 50), dtype=torch.int64)
    targets[3, 7] = 9
    body = as_bytes([datum(list(range(20)), target_tokens=targets)])

    message = message_of(body)

    assert (
        pb.ForwardBackwardRequest.FromString(body)
        .data[0]
        .loss_fn_inputs["target_tokens"]
        .HasField("sparse_csr")
    )
    np.testing.assert_array_equal(message.targets, targets.numpy())


def test_a_request_says_itself_that_it_has_no_backward():
    assert message_of(as_bytes([simple()], forward_only=True)).forward_only
    assert not message_of(as_bytes([simple()])).forward_only


def test_a_forward_request_of_older_clients_has_no_backward():
    body = json.dumps(as_json([simple()], part="forward_input")).encode()

    assert message_of(body, JSON).forward_only
    assert message_of(json.dumps(as_json([simple()])).encode(), JSON, forward_only=True).forward_only


def test_a_compressed_body_is_read_like_a_plain_one():
    body = as_bytes([simple()], seq_id=9)
    squeezed = zstandard.compress(body)

    assert peek_forward_backward(squeezed, PROTOBUF, "zstd").seq_id == 9
    np.testing.assert_array_equal(
        message_of(squeezed, content_encoding="zstd").targets, message_of(body).targets
    )


@pytest.mark.parametrize("dtype", [pb.DTYPE_INT32, pb.DTYPE_INT64])
def test_integers_of_both_widths_are_targets(dtype):
    width = np.int32 if dtype == pb.DTYPE_INT32 else np.int64
    request = pb.ForwardBackwardRequest.FromString(as_bytes([simple(2)]))
    tensor = request.data[0].loss_fn_inputs["target_tokens"]
    tensor.dtype = dtype
    tensor.dense = np.array([-1, 5], dtype=width).tobytes()

    np.testing.assert_array_equal(message_of(request.SerializeToString()).targets, [-1, 5])


def test_bfloat16_weights_are_widened_exactly():
    import torch

    weights = torch.tensor([1.5, -0.1, 3e38], dtype=torch.bfloat16)
    request = pb.ForwardBackwardRequest.FromString(as_bytes([simple()]))
    tensor = request.data[0].loss_fn_inputs["weights"]
    tensor.dtype = pb.DTYPE_BFLOAT16
    tensor.dense = weights.view(torch.int16).numpy().tobytes()

    np.testing.assert_array_equal(message_of(request.SerializeToString()).weights, weights.float().numpy())


def test_a_tensor_without_a_shape_is_a_list():
    request = pb.ForwardBackwardRequest.FromString(as_bytes([simple()]))
    del request.data[0].loss_fn_inputs["target_tokens"].shape[:]

    assert message_of(request.SerializeToString()).targets.shape == (3,)


def test_whole_numbers_serve_as_weights():
    message = message_of(as_bytes([simple(weights=np.array([0, 1, 2]))]))

    np.testing.assert_array_equal(message.weights, np.array([0, 1, 2], dtype=np.float32))


def test_datums_without_weights_beside_some_with_weigh_one():
    message = message_of(as_bytes([simple(2), simple(2, weights=[0.5, 2.0])]))

    np.testing.assert_array_equal(message.weights, [1, 1, 0.5, 2])


def test_settings_of_older_clients_count_and_newer_ones_go_before_them():
    request = pb.ForwardBackwardRequest.FromString(as_bytes([rewarded()], "ppo", {"clip_low_threshold": 0.5}))
    request.loss_fn_config["clip_low_threshold"] = 0.1
    request.loss_fn_config["clip_high_threshold"] = 2.0

    message = message_of(request.SerializeToString())

    assert message.loss_config == {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}


def test_a_ratio_mask_belongs_to_gspo():
    data = [rewarded(sequence_ratio_mask=[1.0, 0.0, 1.0]), rewarded(2)]

    gspo = decode_forward_backward(as_bytes(data, "gspo"), PROTOBUF)
    ppo = decode_forward_backward(as_bytes(data, "ppo"), PROTOBUF)

    np.testing.assert_array_equal(gspo.inputs.ratio_mask, [1, 0, 1, 1, 1])
    assert ppo.inputs.ratio_mask.size == 0
    assert ppo.inputs.ignored == ("sequence_ratio_mask",)
    assert ppo.metrics == {"ignored_inputs:max": 1.0}
    assert gspo.metrics == {}


def test_provenance_is_accepted():
    from tinker.types.provenance_spans import PromptProvenanceSpan, SampledProvenanceSpan

    spans = [
        PromptProvenanceSpan(sequence_id="q", length=1),
        SampledProvenanceSpan(sequence_id="q", length=2),
    ]
    made = rewarded().with_provenance(model_input=spans, loss_fn_inputs=spans)

    message = message_of(as_bytes([made], "stable_reinforce", {"kl_coeff": 0.01}))

    assert message.loss_config == {"kl_coeff": 0.01}


def test_padding_of_a_prompt_is_left_out_where_provenance_tells_it():
    from tinker.types.provenance_spans import PromptProvenanceSpan, SampledProvenanceSpan

    spans = [
        PromptProvenanceSpan(sequence_id="q", length=2),
        SampledProvenanceSpan(sequence_id="q", length=1),
    ]
    datum = rewarded(advantages=[0.0, 0.5, 0.0])

    told = message_of(as_bytes([datum.with_provenance(model_input=spans, loss_fn_inputs=spans)], "dro"))
    untold = message_of(as_bytes([datum], "dro"))

    np.testing.assert_array_equal(told.weights, [0, 1, 1])
    np.testing.assert_array_equal(untold.weights, [1, 1, 1])


def test_who_asks_is_read_whatever_is_wrong_with_the_rest():
    request = pb.ForwardBackwardRequest(model_id="s:train:3", seq_id=7, loss_fn="nonsense")
    damaged = request.SerializeToString() + b"\x1a\x02\xff\xff"  # field 3, two bytes that are no Datum

    assert peek_forward_backward(damaged, PROTOBUF).model_id == "s:train:3"
    assert peek_forward_backward(damaged, PROTOBUF).seq_id == 7


def test_who_asks_in_json_is_read_whatever_is_wrong_with_the_rest():
    body = b'{"forward_backward_input": 5, "model_id": "s:train:3", "seq_id": 7}'

    assert peek_forward_backward(body, "application/json; charset=utf-8").seq_id == 7


def test_a_request_without_a_number_is_not_numbered():
    assert peek_forward_backward(as_bytes([simple()], seq_id=None), PROTOBUF).seq_id is None
    assert peek_forward_backward(b'{"model_id": "m"}', JSON).seq_id is None
