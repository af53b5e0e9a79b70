"""A forward_backward request, from its bytes to the bus message.

A body is decoded twice: `peek_forward_backward` reads whose it is and which number it has, so that the
number can be used up whatever is wrong with the rest; `decode_forward_backward` reads all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...bus.errors import InvalidRequest
from ...bus.ids import AdapterId, LaneId
from ...bus.messages import ForwardBackward, LossName
from . import json_pass, protobuf
from .compression import MOST_BYTES, MOST_JSON_BYTES, plain_body
from .loss_inputs import LossInputs, checked_loss, packed
from .pass_request import shown

PROTOBUF = "application/x-protobuf"

# The SDK sends a thousand datums at most, of some twenty parts each.
_MOST_PARTS = 2**18
_HEAVY_PARTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """seq_id None: the request is not numbered. plain_bytes: what it is without its encoding. heavy: reading
    the rest takes longer than so many bytes do, for it has very many parts, or sparse ones."""

    model_id: str
    seq_id: int | None
    plain_bytes: int = 0
    heavy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackwardCall:
    """Checked but for what only the trainer knows: vocabulary, context, settings of the loss."""

    model_id: str
    seq_id: int | None
    loss: LossName
    settings: Mapping[str, float]
    forward_only: bool
    inputs: LossInputs

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the answer's metrics say about the request: how many inputs the loss does not have."""
        ignored = len(self.inputs.ignored)
        return {"ignored_inputs:max": float(ignored)} if ignored else {}


def peek_forward_backward(body: bytes, content_type: str, content_encoding: str | None = None) -> Envelope:
    """
    Raises:
        InvalidRequest, NotSupported: not even this much can be read, or it has too many parts.
    """
    form = protobuf if _is_protobuf(content_type) else json_pass
    plain = _plain(body, content_type, content_encoding)
    # First: what has a million empty parts in a megabyte takes a gigabyte when it is read.
    parts, sparse = form.parts_of(plain)
    if parts > _MOST_PARTS:
        raise InvalidRequest(
            f"the body has more than {_MOST_PARTS} parts (datums, chunks, inputs): send fewer datums at a time"
        )
    model_id, seq_id = form.read_envelope(plain)
    if not model_id:
        raise InvalidRequest("the body needs a model_id")
    heavy = sparse or parts > _HEAVY_PARTS
    return Envelope(model_id=model_id, seq_id=seq_id, plain_bytes=len(plain), heavy=heavy)


def decode_forward_backward(
    body: bytes, content_type: str, content_encoding: str | None = None, *, forward_only: bool = False
) -> ForwardBackwardCall:
    """forward_only: also when the body does not say so, as for /forward.

    Raises:
        InvalidRequest: the bytes are not such a request, or name no loss of ours.
        InvalidData: data that cannot be used.
        NotSupported: understood, and not done here.
    """
    read = protobuf.read_pass if _is_protobuf(content_type) else json_pass.read_pass
    request = read(_plain(body, content_type, content_encoding))
    loss = checked_loss(request.loss_fn)
    settings: dict[str, float] = {}
    for name, value in request.settings.items():
        if isinstance(value, str):
            raise InvalidRequest(f"loss_fn_config: {shown(name)} is a text; {loss} takes numbers")
        settings[name] = value
    return ForwardBackwardCall(
        model_id=request.model_id,
        seq_id=request.seq_id,
        loss=loss,
        settings=settings,
        forward_only=forward_only or request.forward_only,
        inputs=packed(request.data, loss),
    )


def to_message(call: ForwardBackwardCall, *, adapter: AdapterId, lane: LaneId, seq: int) -> ForwardBackward:
    inputs = call.inputs
    return ForwardBackward(
        adapter=adapter,
        lane=lane,
        seq=seq,
        lengths=inputs.lengths,
        tokens=inputs.tokens,
        targets=inputs.targets,
        weights=inputs.weights,
        old_logprobs=inputs.old_logprobs,
        advantages=inputs.advantages,
        ratio_mask=inputs.ratio_mask,
        loss=call.loss,
        loss_config=call.settings,
        forward_only=call.forward_only,
    )


def _plain(body: bytes, content_type: str, content_encoding: str | None) -> bytes:
    most_bytes = MOST_BYTES if _is_protobuf(content_type) else MOST_JSON_BYTES
    return plain_body(body, content_encoding, most_bytes=most_bytes)


def _is_protobuf(content_type: str) -> bool:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in (PROTOBUF, "application/json", ""):
        return media_type == PROTOBUF
    raise InvalidRequest(
        f"Content-Type {shown(media_type)} is not known: send {PROTOBUF} or application/json"
    )
