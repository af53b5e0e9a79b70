"""What a client reads of a sample: a SampleResult, in protobuf and, from that, in JSON.

Legend: P = prompt tokens, S = sampled tokens of all sequences end to end, N = tokens of one sequence,
K = choices at one position, L = listed cells of a sparse request.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from ...bus.errors import Aborted
from ...bus.messages import Floats, Ints, SampleResult, StopReason
from . import tinker_pb2 as pb
from .sample_request import SampleCall
from .tensors import Csr, listed_cells

# What stands in a cell that holds no token; clients know it by these numbers.
_NO_TOKEN = 0
_NO_LOGPROB = -99999.0

_STOP_REASONS: Mapping[StopReason, pb.StopReason] = {
    "stop": pb.STOP_REASON_STOP,
    "length": pb.STOP_REASON_LENGTH,
}


def encode_sample(result: SampleResult, call: SampleCall) -> bytes:
    """What the request did not ask for is left out.

    Raises:
        Aborted: a sequence was given up.
    """
    response = pb.SampleResponse(
        sequences=_sequences(result, call), prompt_cache_hit_tokens=result.prompt_cached_tokens
    )
    asked = call.message
    if asked.prompt_logprobs:
        response.prompt_logprobs = _float32(result.prompt_logprobs)
    if asked.topk_prompt_logprobs:
        topk = _topk(result.prompt_topk_tokens, result.prompt_topk_logprobs)
        response.topk_prompt_logprobs.CopyFrom(topk)
    if call.targets.shape[1]:
        targets = _targets(result.prompt_target_logprobs, call.targets, call.target_layout)
        response.target_prompt_logprobs.CopyFrom(targets)
    if asked.prompt_alt_tokens:
        response.prompt_alt_tokens.CopyFrom(_drawn(result, (asked.prompt.size - 1, asked.prompt_alt_tokens)))
    encoded: bytes = response.SerializeToString(deterministic=True)
    return encoded


def _sequences(result: SampleResult, call: SampleCall) -> Sequence[pb.SampledSequence]:
    sequences = []
    ends = np.cumsum(result.lengths)
    for start, end, reason in zip(ends - result.lengths, ends, result.stop_reasons, strict=True):
        if reason not in _STOP_REASONS:
            raise Aborted("the sample was given up before it was done")
        sequence = pb.SampledSequence(
            stop_reason=_STOP_REASONS[reason],
            tokens=_int32(result.tokens[start:end]),
            logprobs=_float32(result.logprobs[start:end]),
        )
        if call.message.topk_sample_logprobs:
            topk = _topk(result.sample_topk_tokens[start:end], result.sample_topk_logprobs[start:end])
            sequence.topk_sampled_logprobs.CopyFrom(topk)
        sequences.append(sequence)
    return sequences


def _topk(tokens: Ints, logprobs: Floats) -> pb.TopkLogprobs:
    """[positions, K]. Token -1 marks a cell that holds none."""
    empty = tokens < 0
    return pb.TopkLogprobs(
        token_ids=_int32(np.where(empty, _NO_TOKEN, tokens)),
        logprobs=_float32(np.where(empty, np.float32(_NO_LOGPROB), logprobs)),
        length=tokens.shape[0],
        k=tokens.shape[1],
    )


def _targets(logprobs: Floats, asked: Ints, layout: Csr | None) -> pb.Tensor:
    """logprobs, asked: [P - 1, K]. Zero where nothing was asked; the layout of the request."""
    named = asked >= 0
    logprobs = np.where(named, logprobs, np.float32(0)) if named.any() else np.zeros(asked.shape, np.float32)
    if layout is None:
        return _dense(logprobs)
    return pb.Tensor(
        sparse_csr=pb.SparseCsr(
            values=_float32(logprobs.ravel()[listed_cells(layout, logprobs.shape[1])]),
            crow_indices=layout.crow.astype("<i8", copy=False).tobytes(),
            col_indices=layout.col.astype("<i8", copy=False).tobytes(),
        ),
        dtype=pb.DTYPE_FLOAT32,
        shape=logprobs.shape,
    )


def _drawn(result: SampleResult, shape: tuple[int, int]) -> pb.PromptAltTokens:
    """shape: (P - 1, K), also where a prompt of one token leaves nothing to draw."""
    tokens = pb.Tensor(dense=_int32(result.prompt_alt_tokens), dtype=pb.DTYPE_INT32, shape=shape)
    return pb.PromptAltTokens(tokens=tokens, logprobs=_dense(result.prompt_alt_logprobs.reshape(shape)))


def _dense(values: Floats) -> pb.Tensor:
    return pb.Tensor(dense=_float32(values), dtype=pb.DTYPE_FLOAT32, shape=values.shape)


def _int32(values: Ints) -> bytes:
    return values.astype("<i4").tobytes()


def _float32(values: Floats) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


# --- JSON --------------------------------------------------------------------------------------


def sample_json(encoded: bytes) -> bytes:
    """What `encode_sample` wrote, in the JSON of clients that read no protobuf (up to 0.24).

    They know sequences, prompt_logprobs and topk_prompt_logprobs. The other fields have the names of
    the protobuf and the JSON form of tensors in requests.
    """
    response = pb.SampleResponse.FromString(encoded)
    fields: dict[str, object] = {
        "type": "sample",
        "sequences": [_sequence_json(sequence) for sequence in response.sequences],
        "prompt_cache_hit_tokens": response.prompt_cache_hit_tokens,
    }
    if response.HasField("prompt_logprobs"):
        fields["prompt_logprobs"] = _nan_to_none(np.frombuffer(response.prompt_logprobs, dtype="<f4"))
    if response.HasField("topk_prompt_logprobs"):
        fields["topk_prompt_logprobs"] = _topk_json(response.topk_prompt_logprobs)
    if response.HasField("target_prompt_logprobs"):
        fields["target_prompt_logprobs"] = _tensor_json(response.target_prompt_logprobs)
    if response.HasField("prompt_alt_tokens"):
        drawn = response.prompt_alt_tokens
        fields["prompt_alt_tokens"] = {
            "tokens": _tensor_json(drawn.tokens),
            "logprobs": _tensor_json(drawn.logprobs),
        }
    return msgspec.json.encode(fields)


def _sequence_json(sequence: pb.SampledSequence) -> Mapping[str, object]:
    fields: dict[str, object] = {
        "stop_reason": "stop" if sequence.stop_reason == pb.STOP_REASON_STOP else "length",
        "tokens": np.frombuffer(sequence.tokens, dtype="<i4").tolist(),
        "logprobs": np.frombuffer(sequence.logprobs, dtype="<f4").tolist(),
    }
    if sequence.HasField("topk_sampled_logprobs"):
        fields["topk_logprobs"] = _topk_json(sequence.topk_sampled_logprobs)
    return fields


def _topk_json(topk: pb.TopkLogprobs) -> Sequence[Sequence[tuple[int, float]] | None]:
    """A list of pairs for each position, null for one that holds none."""
    shape = (topk.length, topk.k)
    tokens = np.frombuffer(topk.token_ids, dtype="<i4").reshape(shape)
    logprobs = np.frombuffer(topk.logprobs, dtype="<f4").reshape(shape)
    rows = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    pairs = ([pair for pair in zip(*row, strict=True) if pair[1] != _NO_LOGPROB] for row in rows)
    return [row or None for row in pairs]


def _tensor_json(tensor: pb.Tensor) -> Mapping[str, object]:
    ints = tensor.dtype == pb.DTYPE_INT32
    sparse = tensor.sparse_csr if tensor.HasField("sparse_csr") else None
    values = np.frombuffer(tensor.dense if sparse is None else sparse.values, dtype="<i4" if ints else "<f4")
    fields: dict[str, object] = {
        "data": values.tolist() if ints else _nan_to_none(values),
        "dtype": "int64" if ints else "float32",
        "shape": list(tensor.shape),
    }
    if sparse is not None:
        fields["sparse_crow_indices"] = np.frombuffer(sparse.crow_indices, dtype="<i8").tolist()
        fields["sparse_col_indices"] = np.frombuffer(sparse.col_indices, dtype="<i8").tolist()
    return fields


def _nan_to_none(values: Floats) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
