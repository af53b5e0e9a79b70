"""How many fields a protobuf message has, counted on its bytes, before anything is made of it.

Two bytes can be a message within a message, which takes fifty when it is parsed.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

Kind = TypeVar("Kind")

# Looking further would only say how far beyond every bound it is.
ENOUGH = 2**18 + 1


def parts_in(
    body: bytes, kind: Kind, inner: Callable[[Kind], Mapping[int, Kind]], *, sparse: Kind
) -> tuple[int, bool]:
    """Fields in all depths, `ENOUGH` at most; and whether any of them is of the kind `sparse`.

    inner: the fields of a kind that are messages, by their numbers.

    Bytes that are no such message are counted up to there: its parser says what is wrong.
    """
    count, found = 0, False
    inside = [(0, len(body), kind)]
    while inside:
        at, end, within = inside.pop()
        found = found or within is sparse
        kinds = inner(within)
        while at < end:
            count += 1
            if count >= ENOUGH:
                return count, found
            tag, at = _varint(body, at, end)
            match tag & 7:
                case 0:
                    _, at = _varint(body, at, end)
                case 1:
                    at += 8
                case 2:
                    size, at = _varint(body, at, end)
                    if (message := kinds.get(tag >> 3)) is not None:
                        inside.append((at, min(at + size, end), message))
                    at += size
                case 5:
                    at += 4
    return count, found


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    """Its value, and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return value, at
