"""Which base model a state belongs to: the model's name, shape and weights in one string, and what differs.

Tens of gigabytes are too much to read at every start, so of a larger tensor some blocks stand for the whole,
spread evenly from its first byte to its last. What changes a tensor's numbers here and there (another seed, a
fine-tune, a factor) changes them; what changes a few rows of one only may be missed. How the tensors are
spread over files, and where these lie, makes no difference.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..bus.errors import InvalidConfig
from ..bus.messages import ModelDetails

_BLOCKS = 8
_BLOCK_BYTES = 4096
_DIGITS = 16


class _Tensor(msgspec.Struct):
    """As a safetensors header has it. data_offsets: first byte and end, behind the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def base_signature(model: ModelDetails) -> str:
    """What must be equal for an adapter's state to belong to a base model: `<name> <shape>-<weights>`."""
    shape = f"{model.family}/{model.vocab_size}/{model.parameters}"
    return f"{model.name} {hashlib.sha256(shape.encode()).hexdigest()[:_DIGITS]}-{model.weights}"


def base_difference(theirs: str, ours: str) -> str:
    """Between two signatures, in words; "" where they are one base. States of before signatures had weights say
    nothing of them, and fit by name and shape."""
    their_model, their_weights = _parted(theirs)
    model, weights = _parted(ours)
    if their_model != model:
        return f"base model {theirs} is not {ours}"
    if not their_weights or not weights or their_weights == weights:
        return ""
    name = model.rpartition(" ")[0]
    return f"base model {name!r} has other weights here than it had there ({their_weights} is not {weights})"


def weights_fingerprint(files: Iterable[Path]) -> str:
    """Of safetensors files that hold a model together; hex.

    Raises:
        InvalidConfig: one of them cannot be read.
    """
    tensors: dict[str, bytes] = {}
    for file in files:
        try:
            with file.open("rb", buffering=0) as opened:
                tensors.update(_tensors(opened))
        except (OSError, msgspec.MsgspecError, struct.error) as error:
            raise InvalidConfig(f"cannot read {file}: {error}") from error
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name])
    return digest.hexdigest()[:_DIGITS]


def _tensors(opened: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Each tensor's name, and a digest of what it is called, made of, and holds."""
    (length,) = struct.unpack("<Q", opened.read(8))
    header = msgspec.json.decode(opened.read(length), type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    for name, raw in header.items():
        told = msgspec.json.decode(raw, type=_Tensor)
        digest = hashlib.sha256(msgspec.json.encode((name, told.dtype, told.shape)))
        begin, end = told.data_offsets
        for start, size in _blocks(end - begin):
            opened.seek(8 + length + begin + start)
            digest.update(opened.read(size))
        yield name, digest.digest()


def _blocks(size_bytes: int) -> list[tuple[int, int]]:
    """Where to read in a tensor of so many bytes, and how much."""
    if size_bytes <= _BLOCKS * _BLOCK_BYTES:
        return [(0, size_bytes)]
    last = size_bytes - _BLOCK_BYTES
    return [(last * index // (_BLOCKS - 1), _BLOCK_BYTES) for index in range(_BLOCKS)]


def _parted(signature: str) -> tuple[str, str]:
    """Name and shape, and the weights: "" where it says nothing of them."""
    name, _, rest = signature.rpartition(" ")
    shape, _, weights = rest.partition("-")
    return f"{name} {shape}", weights
