"""forward and forward_backward requests in JSON, as clients up to 0.24 send them."""

import msgspec

from ...bus.errors import InvalidRequest
from .json_forms import Int64, ModelInput, TensorData, decoded, tensor_of, tokens_of
from .pass_request import Datum, PassRequest, shown


class _Envelope(msgspec.Struct):
    model_id: str
    seq_id: Int64 | None = None


class _Datum(msgspec.Struct):
    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


class _Input(msgspec.Struct):
    data: list[_Datum]
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None = None


class _Request(_Envelope):
    """forward_input is that of /forward, which has no backward."""

    forward_backward_input: _Input | None = None
    forward_input: _Input | None = None
    forward_only: bool = False


_envelope = msgspec.json.Decoder(_Envelope)
_request = msgspec.json.Decoder(_Request)


def read_envelope(body: bytes) -> tuple[str, int | None]:
    """model_id and seq_id, whatever is wrong with the rest.

    Raises:
        InvalidRequest: not even these can be read.
    """
    envelope = decoded(body, _envelope, "the body")
    return envelope.model_id, envelope.seq_id


def parts_of(body: bytes) -> tuple[int, bool]:
    """How many objects it may have, and whether any may be sparse: by its characters."""
    return body.count(b"{"), b"sparse_c" in body


def read_pass(body: bytes) -> PassRequest:
    """
    Raises:
        InvalidRequest: not a ForwardBackwardRequest or ForwardRequest.
        InvalidData: its tensors are damaged.
        NotSupported: it has images or sounds.
    """
    request = decoded(body, _request, "the body")
    asked = request.forward_backward_input or request.forward_input
    if asked is None:
        raise InvalidRequest("the body needs forward_backward_input")
    return PassRequest(
        model_id=request.model_id,
        seq_id=request.seq_id,
        loss_fn=asked.loss_fn,
        settings=asked.loss_fn_config or {},
        forward_only=request.forward_only or request.forward_backward_input is None,
        data=[_datum(datum, f"datum {index}") for index, datum in enumerate(asked.data)],
    )


def _datum(datum: _Datum, where: str) -> Datum:
    return Datum(
        tokens=tokens_of(datum.model_input, where),
        inputs={
            name: tensor_of(each, f"{where}: {shown(name)}") for name, each in datum.loss_fn_inputs.items()
        },
    )
