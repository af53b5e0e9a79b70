"""The wire: whatever is sent comes out equal. What is wrong is in test_hostile_bytes."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Literal, NewType, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from loractl.bus import codec
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import InvalidData
from loractl.bus.ids import LOCAL_TENANT, RequestId, TenantId, new_request_id
from loractl.bus.messages import (
    Bytes,
    Echo,
    Envelope,
    Floats,
    Ints,
    PassResult,
    Sample,
    SampleChunk,
)
from loractl.bus.schemas import message_classes, schema_of

LIMITS = LimitsConfig()
MESSAGES = list(message_classes())
_DTYPES = {Ints: np.int64, Floats: np.float32, Bytes: np.uint8}


def strategy_of(hint: object) -> st.SearchStrategy:
    """Values that a field with this annotation may hold."""
    if hint in _DTYPES:
        shapes = arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4)
        return arrays.arrays(_DTYPES[hint], shapes)
    if isinstance(hint, NewType):
        return strategy_of(hint.__supertype__)
    if dataclasses.is_dataclass(hint):
        return instance_of(hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(strategy_of, parts))
    if origin is tuple:
        return st.lists(strategy_of(parts[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(strategy_of(parts[0]), strategy_of(parts[1]), max_size=3)
    plain = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(),
        bool: st.booleans(),
        str: st.text(max_size=8),
        types.NoneType: st.none(),
    }
    return plain[hint]


def instance_of(cls: type) -> st.SearchStrategy:
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "kind"}
    return st.builds(cls, **{name: strategy_of(hint) for name, hint in hints.items()})


def enveloped(body: st.SearchStrategy) -> st.SearchStrategy:
    word = st.text(max_size=16)
    return st.builds(
        Envelope, request=word.map(RequestId), tenant=word.map(TenantId), body=body, last=st.booleans()
    )


def frames_of(body: object) -> list[bytes]:
    envelope = Envelope(request=new_request_id(), tenant=LOCAL_TENANT, body=body)
    return [bytes(frame) for frame in codec.encode(envelope)]


def ramp(size: int) -> Bytes:
    return np.arange(size, dtype=np.uint8)


def test_kinds_are_unique() -> None:
    kinds = [cls.kind for cls in MESSAGES]

    assert len(kinds) == len(set(kinds))
    assert all(schema_of(cls.kind).message is cls for cls in MESSAGES)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.kind)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(cls: type, data: st.DataObject) -> None:
    sent = data.draw(enveloped(instance_of(cls)))

    frames = [bytes(frame) for frame in codec.encode(sent)]
    received = codec.decode(frames, LIMITS)

    # Compared as bytes: NaN differs from itself.
    assert type(received.body) is cls
    assert [bytes(frame) for frame in codec.encode(received)] == frames
    assert (received.request, received.tenant, received.last) == (sent.request, sent.tenant, sent.last)


def test_values_and_shapes_survive() -> None:
    tokens = np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2]

    chunk = codec.decode(frames_of(SampleChunk(index=3, tokens=tokens, text="ä")), LIMITS).body

    assert isinstance(chunk, SampleChunk)
    assert chunk.tokens.tolist() == [[0, 2], [3, 5]]
    assert (chunk.index, chunk.text) == (3, "ä")


def test_arrays_are_views_on_the_frame_and_cannot_be_written() -> None:
    frames = codec.encode(Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=Echo(payload=ramp(8))))

    body = codec.decode(frames, LIMITS).body

    assert np.shares_memory(body.payload, np.frombuffer(frames[1], np.uint8))
    assert not body.payload.flags.writeable


def test_an_array_that_begins_off_its_alignment_is_copied() -> None:
    frames = frames_of(SampleChunk(index=0, tokens=np.arange(4), text=""))
    frames[1] = memoryview(b"x" + frames[1])[1:]

    body = codec.decode(frames, LIMITS).body

    assert body.tokens.flags.aligned
    assert body.tokens.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "wrong", [np.zeros(2, np.int32), np.zeros(2, ">i8"), [1, 2], np.zeros((1,) * 5, np.int64)]
)
def test_an_array_of_another_dtype_is_refused_before_it_is_sent(wrong: object) -> None:
    with pytest.raises(InvalidData, match=r"sample_chunk\.tokens"):
        frames_of(SampleChunk(index=0, tokens=wrong, text=""))


def test_the_broker_reads_plain_fields_and_rewrites_them() -> None:
    frames = frames_of(Sample(adapter=None, version=None, prompt=np.arange(3), max_tokens=4))

    header = codec.peek(frames[0], LIMITS)
    frames[0] = codec.with_fields(frames[0], version=7, adapter="ad-1")

    assert (header.kind, header.tenant, header.last) == ("sample", LOCAL_TENANT, True)
    assert header.fields["version"] is None
    assert header.fields["max_tokens"] == 4
    assert "prompt" not in header.fields
    rewritten = codec.decode(frames, LIMITS).body
    assert (rewritten.version, rewritten.adapter, rewritten.prompt.tolist()) == (7, "ad-1", [0, 1, 2])


def test_the_digest_tells_payloads_apart_and_stays_the_same() -> None:
    assert codec.payload_digest([b"ab", b"c"]) == codec.payload_digest([b"ab", memoryview(b"c")])
    assert codec.payload_digest([b"ab", b"c"]) != codec.payload_digest([b"a", b"bc"])
    # Stored outcomes outlive a process, so this value never changes.
    assert codec.payload_digest([b"ab", b"c"]).hex().startswith("43ee655579de01ca")


def test_an_array_that_came_late_is_left_out_where_it_is_empty() -> None:
    one = np.ones(1, np.float32)
    plain = PassResult(logprobs=one, loss_terms=one, metrics={})
    noted = dataclasses.replace(plain, composition=np.arange(3, dtype=np.uint8))

    for body, frames in ((plain, 3), (noted, 4)):
        sent = codec.encode(Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=body))
        assert len(sent) == frames
        assert ("composition" in codec.peek(sent[0], LIMITS).names) == (frames == 4)
        back = codec.decode(sent, LIMITS).body
        assert isinstance(back, PassResult)
        assert back.composition.tobytes() == body.composition.tobytes()
