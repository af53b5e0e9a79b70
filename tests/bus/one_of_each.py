"""One valid message of every kind, and bytes that mean something to msgpack: what hostile bytes are made from."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Literal, NewType, Union, get_args, get_origin, get_type_hints

import numpy as np
from loractl.bus import codec
from loractl.bus.ids import LOCAL_TENANT, RequestId
from loractl.bus.messages import Bytes, Envelope, Floats, Ints, LoraSpec
from loractl.bus.schemas import message_classes

MESSAGES = list(message_classes())
_DTYPES = {Ints: np.int64, Floats: np.float32, Bytes: np.uint8}
# Huge lengths, containers, ext types, ends.
SPICE = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
]
SPICE += [
    b"\x91" * 2000,
    b"\x81\xa1f" * 700,
    b"\xc1",
    b"\xc0",
    b"\xd4\x01\x00",
    b"\xcb\x7f\xf8" + b"\x00" * 6,
]


def corpus() -> list[list[bytes]]:
    """One valid message of every kind, the same in each run."""
    lora = LoraSpec(rank=8, alpha=16.0, seed=1)
    bodies = [plain_example(cls, lora) for cls in MESSAGES]
    sent = [Envelope(request=RequestId("r" * 32), tenant=LOCAL_TENANT, body=body) for body in bodies]
    return [[bytes(frame) for frame in codec.encode(envelope)] for envelope in sent]


def plain_example(cls: type, lora: LoraSpec) -> object:
    values = {name: plain_value(hint, lora) for name, hint in get_type_hints(cls).items() if name != "kind"}
    return cls(**values)


def plain_value(hint: object, lora: LoraSpec) -> object:
    if hint in _DTYPES:
        return np.arange(5).astype(_DTYPES[hint])
    if isinstance(hint, NewType):
        return plain_value(hint.__supertype__, lora)
    if hint is LoraSpec:
        return lora
    if dataclasses.is_dataclass(hint):
        return plain_example(hint, lora)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return parts[0]
    if origin in (Union, types.UnionType):
        return plain_value(parts[0], lora)
    if origin is tuple:
        return (plain_value(parts[0], lora),) * 2
    if origin is Mapping:
        return {"loss:sum": 1.5}
    return {int: 300, float: 0.5, bool: True, str: "word", types.NoneType: None}[hint]
