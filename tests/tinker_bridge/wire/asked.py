"""Requests as the SDK makes them, for the tests of the wire: drawn datums, and their bytes.

Legend: N = positions of a datum, K = targets of a position.
"""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
from hypothesis import strategies as st
from loractl.bus.messages import LossName

tinker = pytest.importorskip("tinker", reason="the SDK is the oracle here")

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
RL_LOSSES = [loss for loss in get_args(LossName) if loss != "cross_entropy"]


def as_bytes(
    data, loss="cross_entropy", settings=None, *, model_id="s:train:0", seq_id=1, forward_only=False
):
    """A forward_backward as the SDK writes it."""
    from tinker.proto.request_conv import forward_backward_request_to_proto
    from tinker.types.forward_backward_input import ForwardBackwardInput
    from tinker.types.forward_backward_request import ForwardBackwardRequest

    asked = ForwardBackwardInput(data=data, loss_fn=loss, loss_fn_config=settings)
    request = ForwardBackwardRequest(forward_backward_input=asked, model_id=model_id, seq_id=seq_id)
    message = forward_backward_request_to_proto(request)
    message.forward_only = forward_only
    return message.SerializeToString()


def as_json(data, loss="cross_entropy", settings=None, *, part="forward_backward_input") -> dict:
    """The same in the JSON of clients up to 0.24."""
    return {
        "model_id": "s:train:0",
        "seq_id": 1,
        part: {"data": [_datum_json(datum) for datum in data], "loss_fn": loss, "loss_fn_config": settings},
    }


def datum(tokens, **inputs):
    """Inputs are arrays; 2-D torch tensors become sparse where the SDK finds that smaller."""
    chunks = tokens if tokens and isinstance(tokens[0], list) else [list(tokens)]
    chunks = [tinker.types.EncodedTextChunk(tokens=chunk) for chunk in chunks]
    return tinker.types.Datum(model_input=tinker.types.ModelInput(chunks=chunks), loss_fn_inputs=inputs)


def simple(count=3, **more):
    """One small datum for cross_entropy."""
    return datum(list(range(count)), target_tokens=np.arange(count), **more)


def rewarded(count=3, **more):
    """One small datum for the other losses."""
    old, advantages = np.linspace(-2, -1, count), np.linspace(-1, 1, count)
    inputs = {"logprobs": old.astype(np.float32), "advantages": advantages.astype(np.float32), **more}
    return simple(count, **inputs)


def inputs_of(made) -> Mapping[str, np.ndarray]:
    """The datum's inputs, dense, as the SDK itself reads them."""
    return {name: value.to_numpy() for name, value in made.loss_fn_inputs.items()}


tokens = st.integers(0, 2**31 - 1)
finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def chunked_tokens(draw) -> list[list[int]]:
    """One or more chunks, together not empty."""
    chunks = draw(st.lists(st.lists(tokens, max_size=5), min_size=1, max_size=3))
    return [*chunks, [draw(tokens)]]


@st.composite
def supervised(draw, targets=None):
    """Datums for cross_entropy: (N,) or (N, K) for all, dense or mostly zero, with weights or without."""
    import torch

    per_position = draw(st.sampled_from([None, 1, 3, 40])) if targets is None else targets
    sparse = draw(st.booleans())
    weighted = draw(st.booleans())
    made = []
    for _ in range(draw(st.integers(1, 4))):
        chunks = draw(chunked_tokens())
        positions = sum(map(len, chunks))
        shape = (positions,) if per_position is None else (positions, per_position)
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        keep = random.random(shape) < (0.05 if sparse else 0.9)
        ids = np.where(keep, random.integers(0, 2**40, shape), 0)
        weights = np.where(keep, random.standard_normal(shape), 0).astype(np.float32)
        inputs = {"target_tokens": torch.from_numpy(ids)}
        if weighted:
            inputs["weights"] = torch.from_numpy(weights)
        made.append(datum(chunks, **inputs))
    return made


@st.composite
def reinforced(draw):
    """Datums for the other losses, with a mask for some."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        chunks = draw(chunked_tokens())
        positions = sum(map(len, chunks))
        row = st.lists(finite, min_size=positions, max_size=positions)
        inputs = {name: np.array(draw(row), dtype=np.float32) for name in ("logprobs", "advantages")}
        if draw(st.booleans()):
            bits = st.lists(st.sampled_from([0, 1]), min_size=positions, max_size=positions)
            inputs["mask"] = np.array(draw(bits), dtype=draw(st.sampled_from([np.float32, np.int64])))
        made.append(datum(chunks, target_tokens=np.arange(positions), **inputs))
    return made


def _datum_json(made) -> dict:
    chunks = [{"type": "encoded_text", "tokens": list(chunk.tokens)} for chunk in made.model_input.chunks]
    inputs = {}
    for name, value in made.loss_fn_inputs.items():
        inputs[name] = {"data": value.data, "dtype": value.dtype, "shape": value.shape}
        if value.sparse_crow_indices is not None:
            inputs[name]["sparse_crow_indices"] = value.sparse_crow_indices
            inputs[name]["sparse_col_indices"] = value.sparse_col_indices
    return {"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}
