"""What a client may send as safetensors: whatever the header claims, it is refused soon, and as nothing else."""

import json
import struct
import time
from collections.abc import Callable

import pytest
from loractl.bus.errors import CheckpointMismatch
from loractl.tests.trainer_actor.compute_lab import Lab, spec
from safetensors.torch import load

T = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
SOON_S = 2.0


def file(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "less than a length": lambda: b"\1\2",
    "a header beyond the file": lambda: file({"a": T}, length=10**9),
    "the longest header of all": lambda: file({"a": T}, length=2**64 - 1),
    "a header of a hundred megabytes": lambda: file(b"{" + b" " * 100_000_000 + b"}"),
    "overlapping tensors": lambda: file({"a": T, "b": T}),
    "a gap between tensors": lambda: file({"a": T, "b": {**T, "data_offsets": [16, 24]}}, bytes(24)),
    "a tensor beyond the file": lambda: file({"a": {**T, "shape": [20], "data_offsets": [0, 80]}}),
    "a negative offset": lambda: file({"a": {**T, "data_offsets": [-8, 0]}}),
    "offsets the wrong way round": lambda: file({"a": {**T, "data_offsets": [8, 0]}}),
    "bytes that belong to nothing": lambda: file({"a": T}, bytes(9)),
    "a shape that overflows": lambda: file({"a": {**T, "shape": [2**62, 4]}}),
    "nothing of enormous size": lambda: file({"a": {**EMPTY, "shape": [0, 2**63 - 1, 2**63 - 1]}}, b""),
    "nothing of large size": lambda: file({"a": {**EMPTY, "shape": [0, 2**39, 2**39]}}, b""),
    "ten thousand dimensions": lambda: file({"a": {**T, "shape": [1] * 10_000 + [2]}}),
    "two hundred thousand tensors": lambda: file({f"t{n}": EMPTY for n in range(200_000)}, b""),
    "thousands of tensors": lambda: file({f"t{n}": EMPTY for n in range(5_000)}, b""),
    "a name without end": lambda: file({"n" * 1_000_000: T}),
    "an unknown type": lambda: file({"a": {**T, "dtype": "X99"}}),
    "a type that torch does not have": lambda: file(
        {"a": {**T, "dtype": "F4", "data_offsets": [0, 1]}}, b"\0"
    ),
    "nesting without end": lambda: file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "no object": lambda: file(b"[1]"),
    "no text": lambda: file(b'{"\xff":1}'),
    "a fraction in a shape": lambda: file({"a": {**T, "shape": [2.5]}}),
    "pickle": lambda: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_soon_and_in_few_words(lab: Lab, made: Callable[[], bytes]) -> None:
    engine = lab.engine("llama")
    engine.fresh(0, spec())
    config_json, _, _ = engine.peft_files(0)
    data = made()

    began = time.process_time()
    with pytest.raises(CheckpointMismatch) as raised:
        engine.state_from_peft(config_json, data, spec())

    assert time.process_time() - began < SOON_S
    assert len(raised.value.message) < 4000


def test_the_header_is_bounded_by_the_adapter_and_its_own_files_pass(lab: Lab) -> None:
    engine = lab.engine("llama")
    engine.fresh(0, spec())
    config_json, data, modules = engine.peft_files(0)

    engine.state_from_peft(config_json, data, spec())

    assert len(load(data)) == 2 * modules
