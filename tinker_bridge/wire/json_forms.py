"""What JSON requests share: decoding with one kind of error, model inputs, tensors."""

from typing import Annotated, TypeVar

import msgspec
import numpy as np

from ...bus.errors import InvalidData, InvalidRequest
from ...bus.messages import Floats, Ints
from .pass_request import refuse_chunk, shown
from .tensors import Csr, Tensor, tensor

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Chunk(msgspec.Struct):
    """tokens: absent in chunks that are not text."""

    type: str = "encoded_text"
    tokens: msgspec.Raw = msgspec.Raw()


class ModelInput(msgspec.Struct):
    chunks: list[Chunk]


class TensorData(msgspec.Struct):
    """data: flat. shape None is that of a list."""

    data: msgspec.Raw
    dtype: str
    shape: list[Int64] | None = None
    sparse_crow_indices: list[Int64] | None = None
    sparse_col_indices: list[Int64] | None = None


T = TypeVar("T")


def decoded(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """
    Raises:
        InvalidRequest: not JSON of this shape.
    """
    try:
        return decoder.decode(body)
    except MALFORMED as error:
        raise InvalidRequest(f"{what}: {error}") from error


def tokens_of(model_input: ModelInput, where: str) -> Ints:
    """All chunks end to end.

    Raises:
        NotSupported: a chunk is an image or a sound.
    """
    parts: list[int] = []
    for chunk in model_input.chunks:
        if chunk.type != "encoded_text":
            raise refuse_chunk(chunk.type, where)
        if not bytes(chunk.tokens):
            raise InvalidRequest(f"{where} has a chunk without tokens")
        tokens = decoded(chunk.tokens, _ints, f"{where}: tokens")
        parts += tokens
    return np.array(parts, dtype=np.int64)


def tensor_of(data: TensorData, what: str) -> Tensor:
    """
    Raises:
        InvalidData: its parts do not fit each other.
        InvalidRequest: data are not numbers of its dtype.
    """
    shape = tuple(data.shape) if data.shape is not None else None
    csr = None
    if data.sparse_crow_indices is not None or data.sparse_col_indices is not None:
        if data.sparse_crow_indices is None or data.sparse_col_indices is None or shape is None:
            raise InvalidData(f"{what} is sparse: it needs sparse_crow_indices, sparse_col_indices and shape")
        csr = Csr(
            crow=np.array(data.sparse_crow_indices, dtype=np.int64),
            col=np.array(data.sparse_col_indices, dtype=np.int64),
        )
    return tensor(_values(data, what), shape, csr, what=what)


def _values(data: TensorData, what: str) -> Ints | Floats:
    if data.dtype == "int64":
        return np.array(decoded(data.data, _ints, what), dtype=np.int64)
    if data.dtype != "float32":
        raise InvalidData(f"{what} has dtype {shown(data.dtype)}: float32 and int64 are known")
    # What is too large for float32 becomes infinite, which the trainer refuses.
    with np.errstate(over="ignore"):
        return np.array(decoded(data.data, _floats, what), dtype=np.float32)


_ints: msgspec.json.Decoder[list[int]] = msgspec.json.Decoder(list[Int64])
_floats: msgspec.json.Decoder[list[float]] = msgspec.json.Decoder(list[float])
