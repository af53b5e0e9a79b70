"""Between the bytes of Tinker's clients and bus messages: both ways, pure, nothing else of the bridge.

    peek_forward_backward, decode_forward_backward, to_message   a request to train
    encode_pass, pass_json                                       its result
    peek_sample, decode_sample                                   a request to sample
    encode_sample, sample_json                                   its result

Whatever bytes come in, what goes wrong is a `LoractlError` that says what to do.
"""

from .forward_backward import (
    Envelope,
    ForwardBackwardCall,
    decode_forward_backward,
    peek_forward_backward,
    to_message,
)
from .pass_output import encode_pass, pass_json
from .sample_output import encode_sample, sample_json
from .sample_request import SampleCall, SampleEnvelope, decode_sample, peek_sample

__all__ = [
    "Envelope",
    "ForwardBackwardCall",
    "SampleCall",
    "SampleEnvelope",
    "decode_forward_backward",
    "decode_sample",
    "encode_pass",
    "encode_sample",
    "pass_json",
    "peek_forward_backward",
    "peek_sample",
    "sample_json",
    "to_message",
]
