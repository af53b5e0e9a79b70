"""forward_backward requests in protobuf: bytes in, `PassRequest` out. Arrays are views of the bytes."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from ...bus.errors import InvalidData, InvalidRequest
from ...bus.messages import Floats, Ints
from . import tinker_pb2 as pb
from .parts import parts_in
from .pass_request import Datum, PassRequest, check_span, check_tiling, refuse_chunk, shown
from .tensors import Csr, Tensor, tensor


def parts_of(body: bytes) -> tuple[int, bool]:
    """How many fields it has, in all depths, and whether any tensor is sparse."""
    kind = pb.ForwardBackwardRequest.DESCRIPTOR
    return parts_in(body, kind, _inner_kinds, sparse=pb.SparseCsr.DESCRIPTOR)


@cache
def _inner_kinds(kind: Descriptor) -> Mapping[int, Descriptor]:
    return {each.number: each.message_type for each in kind.fields if each.message_type is not None}


def read_envelope(body: bytes) -> tuple[str, int | None]:
    """model_id and seq_id, whatever is wrong with the rest.

    Raises:
        InvalidRequest: not even these can be read.
    """
    envelope = pb.Envelope()
    _parse(envelope, body)
    return envelope.model_id, envelope.seq_id or None


def read_pass(body: bytes) -> PassRequest:
    """
    Raises:
        InvalidRequest: not a ForwardBackwardRequest.
        InvalidData: its tensors are damaged.
        NotSupported: it has images or sounds.
    """
    request = pb.ForwardBackwardRequest()
    _parse(request, body)
    return PassRequest(
        model_id=request.model_id,
        seq_id=request.seq_id or None,
        loss_fn=request.loss_fn,
        settings=_settings(request),
        forward_only=request.forward_only,
        data=[_datum(datum, f"datum {index}") for index, datum in enumerate(request.data)],
    )


def _parse(message: Message, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidRequest("the body is not a protobuf ForwardBackwardRequest") from error


def _settings(request: pb.ForwardBackwardRequest) -> Mapping[str, float | str]:
    """The second map goes before the first, which only older servers need."""
    settings: dict[str, float | str] = dict(request.loss_fn_config)
    for name, value in request.loss_fn_config_v2.items():
        match value.WhichOneof("value"):
            case "number":
                settings[name] = value.number
            case "text":
                settings[name] = value.text
            case _:
                raise InvalidRequest(f"loss_fn_config: {shown(name)} has no value")
    return settings


def _datum(datum: pb.Datum, where: str) -> Datum:
    tokens = _tokens(datum.model_input, where)
    _check_spans(datum.model_input_spans, tokens.size, f"{where}: model_input_spans")
    return Datum(
        tokens=tokens,
        sampled=_check_spans(datum.loss_fn_input_spans, tokens.size, f"{where}: loss_fn_input_spans"),
        inputs={
            name: _tensor(each, f"{where}: {shown(name)}") for name, each in datum.loss_fn_inputs.items()
        },
    )


def _tokens(chunks: Sequence[pb.Chunk], where: str) -> NDArray[np.int32]:
    for chunk in chunks:
        kind = chunk.WhichOneof("chunk")
        if kind != "encoded_text":
            raise refuse_chunk(kind or "none", where)
    joined = b"".join(chunk.encoded_text.tokens for chunk in chunks)
    return np.frombuffer(_whole_items(joined, 4, f"{where}: tokens"), dtype="<i4")


def _check_spans(spans: Sequence[pb.ProvenanceSpan], positions: int, where: str) -> NDArray[np.bool_] | None:
    """Which positions were sampled [N]; None when nothing is said."""
    if not spans:
        return None
    kinds, lengths = [], []
    for each in spans:
        sampled = each.WhichOneof("span") == "sampled_tokens"
        span = each.sampled_tokens if sampled else each.prompt_tokens
        check_span(span.sequence_id, span.offset, span.length, where)
        kinds.append(sampled)
        lengths.append(span.length)
    check_tiling(sum(lengths), positions, where)
    return np.repeat(kinds, lengths)


def _tensor(message: pb.Tensor, what: str) -> Tensor:
    # A scalar's shape is empty, and so is one that was not given: a list either way.
    shape = tuple(message.shape) or None
    if message.WhichOneof("encoding") != "sparse_csr":
        return tensor(_values(message.dense, message.dtype, what), shape, what=what)
    sparse = message.sparse_csr
    csr = Csr(
        crow=_ints64(sparse.crow_indices, f"{what} crow_indices"),
        col=_ints64(sparse.col_indices, f"{what} col_indices"),
    )
    return tensor(_values(sparse.values, message.dtype, what), shape, csr, what=what)


def _values(data: bytes, dtype: int, what: str) -> Ints | Floats:
    match dtype:
        case pb.DTYPE_FLOAT32:
            return np.frombuffer(_whole_items(data, 4, what), dtype="<f4")
        case pb.DTYPE_INT64:
            return _ints64(data, what)
        case pb.DTYPE_INT32:
            return _ints32(data, what)
        case pb.DTYPE_BFLOAT16:
            # The upper half of a float32.
            halves = np.frombuffer(_whole_items(data, 2, what), dtype="<u2")
            return (halves.astype(np.uint32) << 16).view(np.float32)
        case _:
            raise InvalidData(f"{what} has dtype {dtype}: float32, int64, int32 and bfloat16 are known")


def _ints32(data: bytes, what: str) -> Ints:
    return np.frombuffer(_whole_items(data, 4, what), dtype="<i4").astype(np.int64)


def _ints64(data: bytes, what: str) -> Ints:
    return np.frombuffer(_whole_items(data, 8, what), dtype="<i8")


def _whole_items(data: bytes, item_bytes: int, what: str) -> bytes:
    if len(data) % item_bytes:
        raise InvalidData(f"{what} has {len(data)} bytes, not a multiple of {item_bytes}")
    return data
