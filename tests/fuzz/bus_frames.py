"""Frames of the bus: every kind of message, damaged in its bytes, its fields and its number of frames."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
from loractl.bus import codec
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import BadFrame
from loractl.tests.bus.one_of_each import SPICE, corpus
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import Play, Subject

LIMITS = LimitsConfig()
Frames = list[bytes]


@contextmanager
def _open(_directory: Path) -> Iterator[Play]:
    messages = corpus()
    yield lambda source: _read(hostile(source, messages))


BUS_FRAMES = Subject(name="frames", share=240, open=_open)


def hostile(source: Source, messages: list[Frames]) -> Frames:
    """A message with something wrong, or nearly always."""
    frames = [*source.choice(messages)]
    match source.randrange(4):
        case 0:
            frames[0] = _fields_changed(source, frames[0])
        case 1:
            frames[0] = _header_changed(source, frames[0])
        case 2:
            index = source.randrange(len(frames))
            heads = [message[0] for message in messages]
            frames[index] = source.damaged(frames[index], SPICE, heads)
        case _:
            frames = _other_frames(source, frames, messages)
    return frames


def _other_frames(source: Source, frames: Frames, messages: list[Frames]) -> Frames:
    index = source.randrange(len(frames))
    match source.randrange(5):
        case 0:
            del frames[index]
        case 1:
            frames.insert(index, source.choice(source.choice(messages)))
        case 2:
            frames[index] = b""
        case 3:
            frames += [b""] * source.choice((1, LIMITS.frames))
        case _:
            frames[index], frames[0] = frames[0], frames[index]
    return frames


def _header_changed(source: Source, header: bytes) -> bytes:
    """Another value, or none, for one of the header's own keys."""
    read = _unpacked(header)
    key = source.choice("vkrtlfx")
    if source.one_in(4):
        read.pop(key, None)
    else:
        read[key] = _packable(source.odd())
    return _packed(read)


def _fields_changed(source: Source, header: bytes) -> bytes:
    read = _unpacked(header)
    fields = read["f"]
    if not fields or source.one_in(10):
        fields[source.choice(("x", "adapter", ""))] = _packable(source.odd())
        return _packed(read)
    name = source.choice([*fields])
    value = fields[name]
    if isinstance(value, msgpack.ExtType):
        fields[name] = _reference(source, value)
    elif isinstance(value, dict | list) and value and not source.one_in(4):
        fields[name] = _packable(source.changed(value))
    else:
        fields[name] = _packable(source.odd())
    return _packed(read)


def _reference(source: Source, ext: Any) -> Any:
    """A reference to an array that lies: about its frame, its type, its shape."""
    parts = msgpack.unpackb(ext.data)
    if source.one_in(3):
        return msgpack.ExtType(source.choice((0, 1, 2, 127)), source.damaged(ext.data, SPICE))
    place = source.randrange(4)
    if place == 2:
        sizes = (0, 1, 5, 2**31, 2**62, 2**63, -1)
        parts[2] = [source.choice(sizes) for _ in range(source.randrange(7))]
    elif place < 2:
        parts[place] = source.choice((0, 1, 2, 3, 9, -1, 2**63))
    else:
        parts.append(0)
    return msgpack.ExtType(1, msgpack.packb(parts))


def _packable(value: Any) -> Any:
    """Without the integers that msgpack has no form for."""
    if isinstance(value, dict):
        return {key: _packable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_packable(each) for each in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    return value


def _unpacked(header: bytes) -> Any:
    return msgpack.unpackb(header, strict_map_key=False)


def _packed(read: Any) -> bytes:
    packed: bytes = msgpack.packb(read, unicode_errors="surrogatepass")
    return packed


def _read(frames: Frames) -> None:
    """All that any process does with received bytes."""
    try:
        _ = codec.peek(frames[0] if frames else b"", LIMITS).fields
    except BadFrame as error:
        check_told(error)
    try:
        envelope = codec.decode(frames, LIMITS)
    except BadFrame as error:
        check_told(error)
        return
    again = [bytes(frame) for frame in codec.encode(envelope)]
    assert codec.payload_digest(again) == codec.payload_digest(
        [bytes(frame) for frame in codec.encode(codec.decode(again, LIMITS))]
    )
    with suppress(BadFrame):
        codec.with_fields(frames[0])
