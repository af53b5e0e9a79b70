"""What a client reads of a forward_backward: a PassResult, in protobuf and, from that, in JSON.

Legend: B = datums, T = positions of all datums end to end, K = targets of a position.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from ...bus.messages import Floats, Ints, PassResult
from . import tinker_pb2 as pb

_RECORD = "ArrayRecord"


def encode_pass(result: PassResult, lengths: Ints, metrics: Mapping[str, float] | None = None) -> bytes:
    """lengths [B]: positions of each datum. metrics: more of them, beside the result's own.

    Every datum gets `logprobs` and `elementwise_loss`, in the shape of its targets.
    """
    output = pb.ForwardBackwardOutput(
        loss_fn_output_type=_RECORD, metrics={**result.metrics, **(metrics or {})}
    )
    # Made where it belongs: a message that is put into another one is copied.
    record = output.loss_fn_outputs.add(type_tag=_RECORD, num_datums=lengths.size)
    _fill(record.fields["logprobs"], result.logprobs, lengths)
    _fill(record.fields["elementwise_loss"], result.loss_terms, lengths)
    encoded: bytes = output.SerializeToString(deterministic=True)
    return encoded


def pass_json(encoded: bytes) -> bytes:
    """What `encode_pass` wrote, in the JSON of clients that read no protobuf (up to 0.24)."""
    output = pb.ForwardBackwardOutput.FromString(encoded)
    (record,) = output.loss_fn_outputs
    fields = {name: _read(tensor) for name, tensor in record.fields.items()}
    return msgspec.json.encode(
        {
            "type": "forward_backward",
            "loss_fn_output_type": output.loss_fn_output_type,
            "loss_fn_outputs": [
                {name: datums[index] for name, datums in fields.items()} for index in range(record.num_datums)
            ],
            "metrics": dict(output.metrics),
        }
    )


def _fill(tensor: pb.BatchedTensor, values: Floats, lengths: Ints) -> None:
    """values: [T] or [T, K]. Offsets count bytes."""
    assert values.dtype == np.float32
    assert values.shape[0] == lengths.sum()
    row_bytes = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    offsets = np.zeros(lengths.size + 1, dtype="<i8")
    np.cumsum(lengths * row_bytes, out=offsets[1:])
    tensor.data = values.astype("<f4", copy=False).tobytes()
    tensor.offsets = offsets.tobytes()
    tensor.dtype = pb.DTYPE_FLOAT32
    tensor.trailing_shape.extend(values.shape[1:])


def _read(tensor: pb.BatchedTensor) -> Sequence[Mapping[str, object]]:
    """Each datum's part as TensorData."""
    values = np.frombuffer(tensor.data, dtype="<f4").reshape(-1, *tensor.trailing_shape)
    row_bytes = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    ends = np.frombuffer(tensor.offsets, dtype="<i8")[1:-1] // row_bytes
    return [
        {"data": part.ravel().tolist(), "dtype": "float32", "shape": list(part.shape)}
        for part in np.split(values, ends)
    ]
