"""Hostile bytes: whatever is wrong with a message ends as BadFrame, and as nothing else."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loractl.bus import codec
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import BadFrame
from loractl.bus.schemas import MAX_ITEMS
from loractl.tests.bus.one_of_each import MESSAGES, SPICE, corpus

LIMITS = LimitsConfig()


def header(**changes: object) -> bytes:
    plain = {"v": 1, "k": "ping", "r": "r", "t": "local", "l": True, "f": {}}
    return msgspec.msgpack.encode(
        {key: value for key, value in {**plain, **changes}.items() if value is not ...}
    )


def reference(*parts: object, code: int = 1) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(parts))


def echo(ext: object, *frames: bytes) -> list[bytes]:
    return [header(k="echo", f={"payload": ext}), *frames]


LORA = {"rank": 1, "alpha": 1.0, "seed": 0, "train_attn": True, "train_mlp": True, "train_unembed": False}
HOSTILE = {
    "no frame": [],
    "an empty header": [b""],
    "no map": [msgspec.msgpack.encode([1, 2])],
    "something after the map": [header() + b"\x00"],
    "another protocol": [header(v=2)],
    "an unknown key": [header(x=1)],
    "a missing key": [header(l=...)],
    "a kind of another type": [header(k=1)],
    "an unknown kind": [header(k="nonsense")],
    "a request id without end": [header(r="r" * 129)],
    "a tenant without end": [header(t="t" * 129)],
    "text that is not UTF-8": [header(r="\x7f\x7f").replace(b"\x7f\x7f", b"\xff\xfe")],
    "fields that are no map": [header(f=[1])],
    "an unknown field": [header(f={"x": 1})],
    "an unknown field in a description": [
        header(k="create_adapter", f={"name": "a", "lora": LORA | {"x": 1}})
    ],
    "a missing field": [header(k="abort")],
    "a field of another type": [header(k="abort", f={"target": 1})],
    "a boolean for a number": [header(k="pong", f={"daemon_version": "", "uptime_s": True})],
    "a word that is no choice": [
        header(k="failed", f={"code": "", "message": "", "retryable": True, "fault": "x"})
    ],
    "a list that claims 2^31 items": [
        header(k="version_table", f={"last_event": 1, "records": ["HERE"]}).replace(
            b"\x91\xa4HERE", b"\xdd\x7f\xff\xff\xff"
        )
    ],
    "a list over the limit": [
        header(k="version_table", f={"last_event": 1, "records": [0] * (MAX_ITEMS + 1)})
    ],
    "nesting without end": [header(f="HERE").replace(b"\xa4HERE", b"\x91" * 100_000)],
    "maps without end": [header(f="HERE").replace(b"\xa4HERE", b"\x81\xa1a" * 100_000)],
    "a number beyond 64 bits": [header(f="HERE").replace(b"\xa4HERE", b"\xc1")],
    "a frame that nobody refers to": [header(), b"more"],
    "no ext where an array belongs": echo([1, 2, 3]),
    "another ext type": echo(reference(1, 3, [1], code=2), b"x"),
    "a timestamp": echo(msgspec.msgpack.Ext(-1, b"\x00\x00\x00\x01"), b"x"),
    "a broken reference": echo(msgspec.msgpack.Ext(1, b"\xff"), b"x"),
    "a reference with more in it": echo(reference(1, 3, [1], 0), b"x"),
    "a reference to the header": echo(reference(0, 3, [1]), b"x"),
    "a negative frame": echo(reference(-1, 3, [1]), b"x"),
    "a missing frame": echo(reference(2, 3, [1]), b"x"),
    "another dtype": echo(reference(1, 1, [1]), b"12345678"),
    "an unknown dtype": echo(reference(1, 9, [1]), b"x"),
    "a shape that is too large": echo(reference(1, 3, [2]), b"x"),
    "a shape that overflows": echo(reference(1, 3, [2**62, 4]), b""),
    "a negative shape": echo(reference(1, 3, [-1]), b"x"),
    "five dimensions": echo(reference(1, 3, [1] * 5), b"x"),
    "a frame that two arrays share": [
        header(
            k="sample_result",
            f={
                "version": 1,
                "engine": "torch",
                "lengths": reference(1, 1, [1]),
                "tokens": reference(1, 1, [1]),
                "logprobs": reference(2, 2, [0]),
                "texts": [],
                "stop_reasons": [],
                "prompt_logprobs": reference(3, 2, [0]),
            },
        ),
        b"12345678",
        b"",
        b"",
    ],
    "too many frames": [header(), *[b""] * LIMITS.frames],
}


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_one_bad_frame(frames: list[bytes]) -> None:
    with pytest.raises(BadFrame) as raised:
        codec.decode(frames, LIMITS)

    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 1500


@pytest.mark.parametrize("frames", [[header(f=b"x" * 200)], [header(), b"x" * 101]], ids=["header", "frame"])
def test_sizes_are_limited(frames: list[bytes]) -> None:
    with pytest.raises(BadFrame, match="bytes"):
        codec.decode(frames, LimitsConfig(header_bytes=100, frame_bytes=100))


def test_a_field_map_without_end_is_refused_by_the_broker() -> None:
    frame = header(f={str(number): 1 for number in range(1000)})

    with pytest.raises(BadFrame):
        _ = codec.peek(frame, LIMITS).fields


CORPUS = corpus()
mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "spice", "drop", "add", "swap", "zero"]),
        st.integers(0, 2**16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(frames: list[bytes], steps: list[tuple[str, int, int]]) -> list[bytes]:
    """Damage a message: frames dropped, added or exchanged, or the bytes of one changed."""
    frames = list(frames)
    for step, place, value in steps:
        if not frames:
            break
        index = place % len(frames)
        match step:
            case "drop":
                del frames[index]
            case "add":
                frames.insert(index, frames[value % len(frames)])
            case "swap":
                frames[index], frames[0] = frames[0], frames[index]
            case _:
                frames[index] = damaged(frames[index], step, place // len(frames), value)
    return frames


def damaged(frame: bytes, step: str, place: int, value: int) -> bytes:
    """Bits flipped, bytes cut off, put in or zeroed."""
    at = place % (len(frame) + 1)
    match step:
        case "flip" if at < len(frame):
            return frame[:at] + bytes([frame[at] ^ 1 << value % 8]) + frame[at + 1 :]
        case "insert":
            return frame[:at] + bytes([value]) + frame[at:]
        case "spice":
            return frame[:at] + SPICE[value % len(SPICE)] + frame[at:]
        case "zero":
            return frame[:at] + bytes(min(value, len(frame) - at)) + frame[at + value :]
        case _:
            return frame[:at]


def read_everything(frames: list[bytes]) -> None:
    """All that any process does with received bytes. Anything but BadFrame fails the test."""
    with contextlib.suppress(BadFrame):
        _ = codec.peek(frames[0] if frames else b"", LIMITS).fields
    with contextlib.suppress(BadFrame):
        codec.encode(codec.decode(frames, LIMITS))


@settings(max_examples=2_500, deadline=None)
@given(frames=st.sampled_from(CORPUS), steps=mutations)
def test_thousands_of_damaged_messages_are_read_or_refused(
    frames: list[bytes], steps: list[tuple[str, int, int]]
) -> None:
    read_everything(mutated(frames, steps))


@settings(max_examples=1_000, deadline=None)
@given(frames=st.lists(st.binary(max_size=300), max_size=4))
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    read_everything(frames)


@settings(max_examples=1_000, deadline=None)
@given(
    kind=st.sampled_from([cls.kind for cls in MESSAGES]),
    fields=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    ),
)
def test_fields_of_any_other_form_are_refused(kind: str, fields: object) -> None:
    read_everything([header(k=kind, f=fields)])
