"""Requests to train and to sample as clients send them: what damaged ones are made from."""

from typing import Any

import numpy as np
from loractl.tinker_bridge.wire import tinker_pb2 as pb

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def pass_bodies() -> list[bytes]:
    """In protobuf: dense and sparse, one target and several, supervised and rewarded."""
    plain, sparse = _request("cross_entropy"), _request("cross_entropy")
    wide = _request("cross_entropy")
    wide.data[0].loss_fn_inputs["target_tokens"].CopyFrom(_ints([[1, 2], [3, 4], [5, 6]]))
    tensor = sparse.data[0].loss_fn_inputs["target_tokens"]
    tensor.sparse_csr.values = np.array([7], "<i8").tobytes()
    tensor.sparse_csr.crow_indices = np.array([0, 0, 1, 1], "<i8").tobytes()
    tensor.sparse_csr.col_indices = np.array([1], "<i8").tobytes()
    tensor.shape.extend([3, 2])
    rewarded = _request("gspo")
    for name in ("logprobs", "advantages", "mask", "sequence_ratio_mask"):
        rewarded.data[0].loss_fn_inputs[name].CopyFrom(_floats([1.0, 0.0, 1.0]))
    rewarded.loss_fn_config["clip_low_threshold"] = 0.8
    rewarded.loss_fn_config_v2["beta"].number = 0.1
    span = rewarded.data[0].loss_fn_input_spans.add().sampled_tokens
    span.sequence_id, span.length = "q", 3
    return [each.SerializeToString() for each in (plain, sparse, wide, rewarded)]


def _request(loss: str) -> pb.ForwardBackwardRequest:
    request = pb.ForwardBackwardRequest(model_id="s:train:0", seq_id=1, loss_fn=loss)
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = np.arange(3, dtype="<i4").tobytes()
    datum.loss_fn_inputs["target_tokens"].CopyFrom(_ints([1, 2, 3]))
    return request


def _ints(values: list[Any]) -> pb.Tensor:
    array = np.array(values, "<i8")
    return pb.Tensor(dense=array.tobytes(), dtype=pb.DTYPE_INT64, shape=array.shape)


def _floats(values: list[float]) -> pb.Tensor:
    return pb.Tensor(dense=np.array(values, "<f4").tobytes(), dtype=pb.DTYPE_FLOAT32, shape=[len(values)])


def pass_trees(model_id: str = "s:train:0") -> list[Any]:
    """In JSON, as clients up to 0.24 send them."""
    plain = {"target_tokens": _listed([1, 2, 3], "int64"), "weights": _listed([0.0, 1.0, 0.5], "float32")}
    sparse = {
        "target_tokens": {
            **_listed([7], "int64"),
            "shape": [3, 2],
            "sparse_crow_indices": [0, 0, 1, 1],
            "sparse_col_indices": [1],
        }
    }
    old = {name: _listed([-1.0, -2.0, -0.5], "float32") for name in ("logprobs", "advantages")}
    rewarded = {"target_tokens": plain["target_tokens"], **old}
    return [
        _tree(model_id, plain, "cross_entropy", None),
        _tree(model_id, sparse, "cross_entropy", None),
        _tree(model_id, rewarded, "ppo", {"clip_low_threshold": 0.8}),
    ]


def _listed(values: list[Any], dtype: str) -> dict[str, Any]:
    return {"data": values, "dtype": dtype, "shape": [len(values)]}


def _tree(model_id: str, inputs: dict[str, Any], loss: str, settings: dict[str, float] | None) -> Any:
    chunks = [{"type": "encoded_text", "tokens": [1, 2]}, {"type": "encoded_text", "tokens": [3]}]
    datum = {"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}
    asked = {"data": [datum, datum], "loss_fn": loss, "loss_fn_config": settings}
    return {"model_id": model_id, "seq_id": 1, "forward_backward_input": asked, "forward_only": False}


def sample_trees(sampler: str = "s:sample:0") -> list[Any]:
    plain = {
        "sampling_session_id": sampler,
        "seq_id": 1,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {
            "max_tokens": 4,
            "seed": 1,
            "stop": [7, "x"],
            "temperature": 0.5,
            "top_k": 5,
            "top_p": 0.9,
        },
    }
    scored = {
        **plain,
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
        "topk_sample_logprobs": 2,
        "prompt_alt_tokens_k": 1,
        "prompt_logprobs_last_n": 1,
        "target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [2, 1]},
    }
    return [plain, scored]
