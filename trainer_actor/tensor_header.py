"""The header of a safetensors file that a client sent, looked at before any library reads the file.

A header may claim what costs more than its bytes: two hundred thousand empty tensors take ten seconds to
make, a shape of enormous dimensions with a zero among them ends torch's arithmetic. Offsets, overlaps and
types are left to the library, which checks them.
"""

import math
from typing import Annotated

import msgspec

from ..bus.errors import CheckpointMismatch

_LENGTH_BYTES = 8
_MOST_BYTES = 4 * 2**20
_MOST_NAME_CHARACTERS = 512
_MOST_DIMENSIONS = 8

_Size = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]


class _Tensor(msgspec.Struct):
    shape: Annotated[list[_Size], msgspec.Meta(max_length=_MOST_DIMENSIONS)]


_names = msgspec.json.Decoder(
    dict[Annotated[str, msgspec.Meta(max_length=_MOST_NAME_CHARACTERS)], msgspec.Raw]
)
_tensor = msgspec.json.Decoder(_Tensor)


def check_header(data: bytes, *, most_tensors: int, what: str) -> None:
    """Raises CheckpointMismatch: it cannot be an adapter's file, and is not to be read any further."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > min(_MOST_BYTES, len(data) - _LENGTH_BYTES):
        raise CheckpointMismatch(f"{what} cannot be read: its header claims {length} bytes")
    try:
        named = _names.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        named.pop("__metadata__", None)
        if len(named) > most_tensors:
            raise CheckpointMismatch(
                f"{what} does not fit: it has {len(named)} tensors, and at most {most_tensors} are read"
            )
        for raw in named.values():
            if math.prod(_tensor.decode(raw).shape) >= 2**63:
                raise CheckpointMismatch(f"{what} cannot be read: a tensor's shape is impossible")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointMismatch(f"{what} cannot be read: {error}"[:300]) from error
