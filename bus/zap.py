"""Whether zmq lets a peer in over tcp: the answering side of ZAP (ZeroMQ RFC 27). Pure.

zmq asks once for each connection, after the peer has proved that it owns the key it names. What a peer
may do afterwards is decided message by message, so a key that is revoked ends at once.
"""

from collections.abc import Callable, Sequence

from .arrays import Buffer
from .curve_sockets import z85_of

_VERSION = b"1.0"
_CURVE = b"CURVE"
_KEY_BYTES = 32


def zap_answer(frames: Sequence[Buffer], knows: Callable[[str], bool]) -> list[bytes]:
    """The answer to a question of zmq's. knows: whether a public key, as text, may connect.

    The peer's public key becomes the User-Id of its messages.
    """
    question = [bytes(frame) for frame in frames]
    number = question[1] if len(question) > 1 else b""
    if len(question) != 7 or question[0] != _VERSION or question[5] != _CURVE:
        return _answer(number, b"400", b"only CURVE is let in", b"")
    if len(question[6]) != _KEY_BYTES:
        return _answer(number, b"400", b"no public key", b"")
    public = z85_of(question[6])
    if not knows(public):
        return _answer(number, b"400", b"this key is not known", b"")
    return _answer(number, b"200", b"OK", public.encode("ascii"))


def _answer(number: bytes, status: bytes, text: bytes, user: bytes) -> list[bytes]:
    return [_VERSION, number, status, text, user, b""]
