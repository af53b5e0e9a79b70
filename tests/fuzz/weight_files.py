"""Weights from elsewhere: adapter_config.json and safetensors whose headers lie, as PEFT directories and messages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loractl.bus.errors import CheckpointMismatch, InvalidData
from loractl.bus.messages import LoraSpec
from loractl.client.peft_folders import CONFIG_FILE, WEIGHTS_FILE, read_peft_folder
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import Play, Subject
from loractl.trainer_actor.linears import ModelShape
from loractl.trainer_actor.peft_files import read_peft, write_peft
from loractl.trainer_actor.row_layout import RowLayouts

_SHAPE = ModelShape(layers=1, hidden=8, ffn=16, heads=2, kv_heads=1, head_dim=4, vocab=32)
_LORA = LoraSpec(rank=2, alpha=4.0, seed=1)
_SPICE = (
    b'"F32"',
    b'"BOOL"',
    b'"F8_E4M3"',
    b'"U64"',
    b"[0,0]",
    b"[]",
    b"{",
    b"[" * 3000,
    b"-1",
    b"18446744073709551616",
    b"\xff",
)
_TYPES = ("F32", "F16", "BF16", "F64", "I64", "U64", "BOOL", "F8_E4M3", "F4", "C64", "x", 1)


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    torch.set_num_threads(1)
    layout = RowLayouts(_SHAPE).of(_LORA)
    config_json, data, _ = write_peft(layout, _LORA, torch.ones(layout.size), "tiny")
    config = json.loads(config_json)

    def play(source: Source) -> None:
        changed, weights = config_json.encode(), data
        if source.one_in(2):
            changed = source.json_text(source.changed(config))
        else:
            weights = _weights(source, data)
        _read_folder(directory, changed, weights)
        try:
            state = read_peft(layout, _LORA, changed.decode("utf-8", "surrogateescape"), weights)
        except CheckpointMismatch as error:
            check_told(error)
        else:
            assert torch.isfinite(state.main).all()

    yield play


WEIGHTS = Subject(name="weights", share=50, open=_open)


def _read_folder(directory: Path, config: bytes, weights: bytes) -> None:
    (directory / CONFIG_FILE).write_bytes(config)
    (directory / WEIGHTS_FILE).write_bytes(weights)
    try:
        read_peft_folder(directory)
    except InvalidData as error:
        check_told(error)


def _weights(source: Source, data: bytes) -> bytes:
    if source.one_in(3):
        return source.damaged(data, _SPICE)
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    if source.one_in(2):
        header = source.changed(header)
    else:
        _lie(source, header[source.choice([*header])])
    text = source.json_text(header)
    told = len(text)
    if source.one_in(6):
        told = source.choice((0, 1, 7, told - 1, told + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return (
        told.to_bytes(8, "little") + text + source.choice((numbers, numbers, b"", numbers * 2, numbers[:-1]))
    )


def _lie(source: Source, told: dict[str, Any]) -> None:
    """About one tensor: its type, its shape, where it lies."""
    sizes = (0, 1, 2, 8, 2**31, 2**61, 2**63, 2**64 - 1, -1)
    match source.randrange(3):
        case 0:
            told["dtype"] = source.choice(_TYPES)
        case 1:
            told["shape"] = [source.choice(sizes) for _ in range(source.choice((0, 1, 2, 3, 100)))]
        case _:
            told["data_offsets"] = [source.choice(sizes) for _ in range(source.choice((1, 2, 2, 2, 3)))]
