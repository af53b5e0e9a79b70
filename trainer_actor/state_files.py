"""Tensors on disk in the safetensors layout, written by hand: the same tensors are the same bytes.

A library's writer orders metadata as it likes, so equal states would have other digests, and copies
every tensor once more. Here the digest is taken of what is written as it is written. Reading is the
library's. What the tensors mean is left to `checkpoint_state`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_CHUNK_BYTES = 4 * 2**20
_ALIGNED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """digest: SHA-256 of the file, hex."""

    digest: str
    size_bytes: int


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """Write float32 tensors, wherever they lie. Raises OSError: half of it may be there."""
    names = sorted(tensors)
    header = _header({name: tensors[name] for name in names}, metadata)
    digest, size = hashlib.sha256(header), len(header)
    with file.open("wb", buffering=0) as opened:
        _write(opened, memoryview(header))
        for name in names:
            for chunk in _chunks(tensors[name]):
                digest.update(chunk)
                size += len(chunk)
                _write(opened, chunk)
    return Written(digest=digest.hexdigest(), size_bytes=size)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and their metadata.

    Raises:
        OSError, SafetensorError, RuntimeError: it is not there, or no such file.
    """
    with safe_open(file, framework="pt", device="cpu") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Its length as 8 bytes, then JSON, padded so that numbers begin aligned."""
    described: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for name, tensor in tensors.items():
        assert tensor.dtype is torch.float32, f"{name} is {tensor.dtype}"
        end = begin + tensor.nbytes
        described[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    flat = memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    for start in range(0, len(flat), _CHUNK_BYTES):
        yield flat[start : start + _CHUNK_BYTES]


def _write(opened: FileIO, data: memoryview) -> None:
    while data:
        data = data[opened.write(data) :]
