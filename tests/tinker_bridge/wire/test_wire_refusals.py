"""Requests to train that cannot be honoured are refused by name, and hostile bytes end as our errors."""

import json

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus.errors import InvalidData, InvalidRequest, LoractlError, NotSupported
from loractl.tests.tinker_bridge.wire.asked import (
    JSON,
    PROTOBUF,
    as_bytes,
    as_json,
    datum,
    rewarded,
    simple,
    tinker,
)
from loractl.tinker_bridge.wire import decode_forward_backward, peek_forward_backward
from loractl.tinker_bridge.wire import tinker_pb2 as pb
from loractl.tinker_bridge.wire.compression import plain_body


def refused(error, words, body, content_type=PROTOBUF):
    with pytest.raises(error, match=words) as caught:
        decode_forward_backward(body, content_type)
    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message


def edited(change, data=None, loss="cross_entropy") -> bytes:
    request = pb.ForwardBackwardRequest.FromString(as_bytes(data or [simple()], loss))
    change(request)
    return request.SerializeToString()


def targets_edited(change) -> bytes:
    return edited(lambda request: change(request.data[0].loss_fn_inputs["target_tokens"]))


@pytest.mark.parametrize(
    ("error", "words", "data", "loss"),
    [
        (InvalidData, "no data", [], "cross_entropy"),
        (InvalidData, "datum 1 has no tokens", [simple(), simple(0)], "cross_entropy"),
        (InvalidData, "datum 0 has no target_tokens", [datum([1, 2], weights=[1.0, 1.0])], "cross_entropy"),
        (InvalidData, r"shape \(2,\), and model_input has 3", [datum([1, 2, 3], target_tokens=[1, 2])], "cross_entropy"),
        (InvalidData, "weights has the shape", [simple(weights=[1.0])], "cross_entropy"),
        (InvalidData, "must be int64", [datum([1], target_tokens=np.ones(1, np.float32))], "cross_entropy"),
        (InvalidData, "has no logprobs, which ppo needs", [simple(advantages=[1.0, 1.0, 1.0])], "ppo"),
        (InvalidData, "has no advantages, which dro needs", [simple(logprobs=[1.0, 1.0, 1.0])], "dro"),
        (InvalidData, "other than 0 and 1", [rewarded(mask=np.array([0.5, 1, 1], np.float32))], "cispo"),
        (InvalidData, "other than 0 and 1", [rewarded(weights=[0.5, 1.0, 1.0])], "importance_sampling"),
        (InvalidData, "one target a position", [datum([1], target_tokens=np.ones((1, 1), np.int64))], "ppo"),
        (NotSupported, "clip_low_threshold for each token", [rewarded(clip_low_threshold=[1.0] * 3)], "ppo"),
        (NotSupported, "'custom'", [simple()], "custom"),
        (InvalidRequest, "the losses are cross_entropy, ", [simple()], "mse"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(error, words, data, loss):
    refused(error, words, as_bytes(data, loss))
    refused(error, words, json.dumps(as_json(data, loss)).encode(), JSON)


def test_different_numbers_of_targets_in_one_call_are_refused():
    wide = datum([1, 2], target_tokens=np.ones((2, 3), np.int64))

    refused(InvalidData, r"\(3,\) in datum 0 and \(2, 3\) in datum 1", as_bytes([simple(), wide]))


def test_a_text_setting_is_refused_by_name():
    refused(InvalidRequest, "'flavour' is a text", as_bytes([rewarded()], "ppo", {"flavour": "mild"}))


def test_images_are_refused_by_name():
    image = tinker.types.ImageChunk(data=b"..", format="png", expected_tokens=3)
    made = tinker.types.Datum(
        model_input=tinker.types.ModelInput(chunks=[image]), loss_fn_inputs={"target_tokens": [1, 2, 3]}
    )
    body = as_json([simple()])
    body["forward_backward_input"]["data"][0]["model_input"]["chunks"][0] = {"type": "image", "data": "Li4="}

    refused(NotSupported, "'image'", as_bytes([made]))
    refused(NotSupported, "'image'", json.dumps(body).encode(), JSON)


def test_an_empty_chunk_is_refused():
    refused(InvalidRequest, "unknown type 'none'", edited(lambda request: request.data[0].model_input.add()))


@pytest.mark.parametrize("length", [2, -3])
def test_spans_that_do_not_cover_their_datum_are_refused(length):
    def add_span(request):
        span = request.data[0].model_input_spans.add().sampled_tokens
        span.sequence_id, span.length = "q", length

    refused(InvalidData, "datum 0: model_input_spans", edited(add_span))


def sparse(shape, crow, col, values=(1,)):
    """Puts a CSR tensor in the place of the targets."""

    def change(tensor):
        del tensor.shape[:]
        tensor.shape.extend(shape)
        tensor.sparse_csr.values = np.array(values, np.int64).tobytes()
        tensor.sparse_csr.crow_indices = np.array(crow, np.int64).tobytes()
        tensor.sparse_csr.col_indices = np.array(col, np.int64).tobytes()

    return targets_edited(change)


@pytest.mark.parametrize(
    "body",
    [
        sparse((3, 2), [0, 0, 1], [0]),  # a row too few
        sparse((3, 2), [0, 0, 1, 2], [0]),  # more listed than there are
        sparse((3, 2), [1, 1, 1, 1], [0]),  # the first row does not begin at 0
        sparse((3, 2), [0, 2, 0, 1], [0]),  # rows that run backwards
        sparse((3, 2), [0, 2**63 - 1, -(2**63), 1], [0]),  # differences that wrap around
        sparse((3, 2), [0, 0, 0, 1], [2]),  # a column too far
        sparse((3, 2), [0, 0, 0, 1], [-1]),
        sparse((3, 2), [0, 2, 2, 2], [1, 1], values=(1, 2)),  # a cell twice
        sparse((3,), [0, 0, 0, 1], [0]),
        sparse((3, 2**40), [0, 0, 0, 1], [0]),  # would fill the memory
        sparse((2**62, 2**62), [0, 0, 0, 1], [0]),
        sparse((3, 0), [0, 0, 0, 0], [], values=()),
    ],
)
def test_sparse_tensors_that_make_no_sense_are_refused(body):
    refused(InvalidData, "target_tokens", body)


def test_many_large_sparse_datums_are_refused_before_they_are_made_whole():
    data = [datum([1], target_tokens=np.zeros((1, 2), np.int64)) for _ in range(40)]

    def widen(request):
        for made in request.data:
            tensor = made.loss_fn_inputs["target_tokens"]
            tensor.ClearField("shape")
            tensor.shape.extend([1, 2**20])
            tensor.sparse_csr.crow_indices = np.zeros(2, np.int64).tobytes()

    refused(InvalidData, "fewer datums", edited(widen, data))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("not a multiple of 8", lambda tensor: setattr(tensor, "dense", b"123")),
        ("dtype 0", lambda tensor: setattr(tensor, "dtype", 0)),
        ("dtype 77", lambda tensor: setattr(tensor, "dtype", 77)),
        ("do not fill its shape", lambda tensor: tensor.shape.append(5)),
        ("impossible shape", lambda tensor: tensor.shape.extend([-1, -1])),
        ("impossible shape", lambda tensor: tensor.shape.extend([2**62] * 5_000)),
    ],
)
def test_dense_tensors_that_make_no_sense_are_refused(words, change):
    refused(
        InvalidData, words, targets_edited(change) if words != "fill its shape" else targets_edited(_many)
    )


def _many(tensor):
    tensor.shape.extend([2] * 50_000)


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
def test_bytes_that_are_no_request_are_refused(body):
    with pytest.raises(InvalidRequest, match="not a protobuf"):
        peek_forward_backward(body, PROTOBUF)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"model_id": 5}', b"\xff", b'{"model_id": ""}'])
def test_json_that_is_no_request_is_refused(body):
    with pytest.raises(InvalidRequest):
        peek_forward_backward(body, JSON)


def test_other_content_types_and_encodings_are_refused():
    with pytest.raises(InvalidRequest, match="text/html"):
        peek_forward_backward(b"", "text/html")
    with pytest.raises(NotSupported, match="br"):
        peek_forward_backward(b"", PROTOBUF, "br")


def test_what_grows_beyond_the_limit_is_refused():
    body = zstandard.compress(bytes(10_000))

    assert plain_body(body, "zstd", most_bytes=10_000) == bytes(10_000)
    with pytest.raises(InvalidRequest, match="9999 bytes"):
        plain_body(body, "zstd", most_bytes=9_999)
    with pytest.raises(InvalidRequest, match="larger"):
        plain_body(b"1234", None, most_bytes=3)


def test_a_frame_that_claims_to_be_enormous_is_not_believed():
    claimed = b"\x28\xb5\x2f\xfd\xe0" + (2**60).to_bytes(8, "little") + b"\x01\x00\x00"

    with pytest.raises(InvalidRequest):
        plain_body(claimed, "zstd")


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b + b"x", lambda b: b + b, lambda b: b""])
def test_damaged_zstd_is_refused(damage):
    whole = zstandard.compress(b"some bytes" * 50)

    with pytest.raises(InvalidRequest):
        plain_body(damage(whole), "zstd")


_REAL = [
    as_bytes([simple(), datum([[1, 2], [3]], target_tokens=np.eye(3, dtype=np.int64))]),
    as_bytes([rewarded(mask=np.ones(3, np.float32))], "gspo", {"clip_low_threshold": 0.1}),
    sparse((3, 40), [0, 0, 1, 2], [0, 39], values=(1, 2)),
]
_REAL_JSON = [json.dumps(as_json([simple(), rewarded()])).encode()]


def _ends_well(body: bytes, content_type: str, encoding: str | None = None) -> None:
    faults = []
    for read in (peek_forward_backward, decode_forward_backward):
        try:
            read(body, content_type, encoding)
        except LoractlError as error:
            faults.append(error.fault)
    assert set(faults) <= {"user"}


@given(body=st.binary(max_size=300), content_type=st.sampled_from([PROTOBUF, JSON]))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_end_as_our_errors(body, content_type):
    _ends_well(body, content_type)
    _ends_well(body, content_type, "zstd")


@given(
    real=st.sampled_from(range(len(_REAL) + len(_REAL_JSON))),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_damaged_requests_end_as_our_errors(real, flips):
    body = bytearray((_REAL + _REAL_JSON)[real])
    for place, patch in flips:
        start = place % len(body)
        body[start : start + len(patch)] = patch

    _ends_well(bytes(body), PROTOBUF if real < len(_REAL) else JSON)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(wrong=_json, place=st.integers(0, 10))
@settings(max_examples=300, deadline=None)
def test_any_json_in_any_field_ends_as_our_errors(wrong, place):
    body = as_json([simple()])
    made = body["forward_backward_input"]["data"][0]
    tensor = made["loss_fn_inputs"]["target_tokens"]
    holders = [
        (body, "model_id"), (body, "seq_id"), (body, "forward_backward_input"),
        (body["forward_backward_input"], "data"), (body["forward_backward_input"], "loss_fn_config"),
        (made, "model_input"), (made["model_input"]["chunks"][0], "tokens"), (made, "loss_fn_inputs"),
        (tensor, "data"), (tensor, "shape"), (tensor, "sparse_crow_indices"),
    ]  # fmt: skip
    holder, key = holders[place]
    holder[key] = wrong

    _ends_well(json.dumps(body).encode(), JSON)


def test_json_nested_without_end_ends_as_our_error():
    _ends_well(b'{"model_id": "m", "forward_backward_input": ' + b"[" * 100_000, JSON)
