"""The wire is plain msgpack: another implementation reads our headers and writes ones that we read."""

import msgpack
import numpy as np
from loractl.bus.codec import decode, encode
from loractl.bus.config import LimitsConfig
from loractl.bus.ids import LOCAL_TENANT, RequestId
from loractl.bus.messages import Echo, Envelope, GetStatus


def test_another_msgpack_reads_our_header() -> None:
    payload = np.arange(5, dtype=np.uint8)
    echo = Envelope(request=RequestId("r1"), tenant=LOCAL_TENANT, body=Echo(payload=payload))

    header, frame = encode(echo)
    read = msgpack.unpackb(bytes(header))

    assert (read["v"], read["k"], read["r"], read["t"], read["l"]) == (1, "echo", "r1", "local", True)
    reference = read["f"]["payload"]
    assert reference.code == 1
    assert msgpack.unpackb(reference.data) == [1, 3, [5]]
    assert bytes(frame) == payload.tobytes()


def test_we_read_what_another_msgpack_writes() -> None:
    header = msgpack.packb({"v": 1, "k": "get_status", "r": "r2", "t": "local", "l": True, "f": {}})

    read = decode([header], LimitsConfig())

    assert read == Envelope(request=RequestId("r2"), tenant=LOCAL_TENANT, body=GetStatus())
