"""Which request ids the journal may have, so that a new request costs no look into its file.

A Bloom filter (Bloom 1970): never wrong when it says no, wrong about one in 200 when it says yes.
Grows by further filters of twice the size; what is deleted from the journal stays known until a restart.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..decisions import Key

_BITS_EACH = 16
_PROBES = 3
_FIRST_ROOM = 2**18


@lru_cache(maxsize=1024)
def id_of(key: Key) -> int:
    """64 bits of a digest, the same in every process; what the journal finds a request by.

    Asked for when the request comes, when it is written and when it is durable.
    """
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class KnownIds:
    def __init__(self, ids: Sequence[int] = (), *, room: int = _FIRST_ROOM) -> None:
        """room: for how many at first."""
        self._filters: list[tuple[bytearray, int]] = []
        self._left = 0
        self._room = max(room, len(ids))
        if ids:
            self._add_all(np.array(ids, dtype=np.int64))

    def add(self, one: int) -> None:
        if not self._left:
            self._grow()
        self._left -= 1
        bits, mask = self._filters[-1]
        place, stride = one & mask, (one >> 32) | 1
        for _ in range(_PROBES):
            bits[place >> 3] |= 1 << (place & 7)
            place = (place + stride) & mask

    def __contains__(self, one: int) -> bool:
        for bits, mask in self._filters:  # noqa: SIM110  # `any` takes twice as long
            if _has(bits, mask, one):
                return True
        return False

    def _add_all(self, ids: "npt.NDArray[np.int64]") -> None:
        """As `add`, a hundred times as fast: a start with a million of them takes no second."""
        self._grow()
        self._left -= len(ids)
        bits, mask = self._filters[-1]
        octets = np.frombuffer(bits, dtype=np.uint8)
        places, strides = ids & mask, (ids >> 32) | 1
        for _ in range(_PROBES):
            np.bitwise_or.at(octets, places >> 3, (1 << (places & 7)).astype(np.uint8))
            places = (places + strides) & mask

    def _grow(self) -> None:
        size = 1 << (self._room * _BITS_EACH - 1).bit_length()
        self._filters.append((bytearray(size >> 3), size - 1))
        self._left, self._room = self._room, self._room * 2


def _has(bits: bytearray, mask: int, one: int) -> bool:
    place, stride = one & mask, (one >> 32) | 1
    for _ in range(_PROBES):
        if not bits[place >> 3] & (1 << (place & 7)):
            return False
        place = (place + stride) & mask
    return True
