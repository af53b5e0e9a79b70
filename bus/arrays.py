"""Arrays on the wire: a short reference in the header, the raw bytes in a frame of their own.

A reference is msgpack ext type 1 around the packed triple [frame index, dtype code, shape]; the
bytes are C-ordered and little-endian. Decoded arrays are read-only views on the received frame.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import BadFrame, InvalidData
from .messages import Bytes, Floats, Ints

Buffer = bytes | bytearray | memoryview
Array = Ints | Floats | Bytes
DTypeCode = int

ARRAY_EXT = 1
_MAX_DIMENSIONS = 4

# What a message field may be annotated with, and its code on the wire.
ARRAY_HINTS: Mapping[object, DTypeCode] = {Ints: 1, Floats: 2, Bytes: 3}
_DTYPES: Mapping[DTypeCode, np.dtype[Any]] = {1: np.dtype("<i8"), 2: np.dtype("<f4"), 3: np.dtype("u1")}


class _Reference(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    frame: int
    dtype: DTypeCode
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=_MAX_DIMENSIONS)]


_encode_reference: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
_decode_reference = msgspec.msgpack.Decoder(_Reference).decode


def pack_array(value: Array, code: DTypeCode, frames: list[Buffer], *, what: str) -> msgspec.msgpack.Ext:
    """Append the array's bytes to `frames` and return the reference for the header.

    A contiguous array is not copied: its memory must stay as it is until the frame has been sent.

    Raises:
        InvalidData: `value` is no array, or not of the dtype that its field has.
    """
    dtype = _DTYPES[code]
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise InvalidData(f"{what} must be an array of {dtype.name}, not of {found}")
    if value.ndim > _MAX_DIMENSIONS:
        raise InvalidData(f"{what} has {value.ndim} dimensions; at most {_MAX_DIMENSIONS} travel")
    reference = _encode_reference(_Reference(len(frames), code, value.shape))
    # A memoryview with a zero in its shape cannot be cast to bytes.
    frames.append(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
    return msgspec.msgpack.Ext(ARRAY_EXT, reference)


def unpack_array(
    ext: msgspec.msgpack.Ext, code: DTypeCode, frames: Sequence[Buffer], used: set[int]
) -> NDArray[np.generic]:
    """Return the array that a reference names, as a read-only view, and note its frame in `used`.

    Raises:
        BadFrame: another ext type, another dtype than the field has, a frame that is missing or
            taken, or a shape that does not fill the frame exactly.
    """
    if ext.code != ARRAY_EXT:
        raise BadFrame(f"ext type {ext.code} is not known")
    try:
        reference = _decode_reference(ext.data)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"a broken array reference: {error}") from error
    if reference.dtype != code:
        raise BadFrame(f"dtype code {reference.dtype} where {code} belongs")
    if not 0 < reference.frame < len(frames) or reference.frame in used:
        raise BadFrame(f"frame {reference.frame} of {len(frames)} is missing or used twice")
    frame, dtype = frames[reference.frame], _DTYPES[code]
    if math.prod(reference.shape) * dtype.itemsize != len(frame):
        raise BadFrame(f"{len(frame)} bytes do not make {dtype.name} of shape {reference.shape}")
    used.add(reference.frame)
    array: NDArray[np.generic] = np.frombuffer(frame, dtype).reshape(reference.shape)
    if not array.flags.aligned:  # a frame inside zmq's receive buffer may begin anywhere
        array = array.copy()
    array.flags.writeable = False
    return array


def items_in_frame(ext: msgspec.msgpack.Ext, frames: Sequence[Buffer]) -> int:
    """How many items the frame holds that a reference names; 0 for a broken reference.

    By the frame's own size: what a reference says of its shape was not checked yet.
    """
    try:
        reference = _decode_reference(ext.data)
    except msgspec.MsgspecError:
        return 0
    dtype = _DTYPES.get(reference.dtype)
    if ext.code != ARRAY_EXT or dtype is None or not 0 < reference.frame < len(frames):
        return 0
    return len(frames[reference.frame]) // dtype.itemsize
