"""Finished operations, kept so that a resend reads the first outcome and never runs again.

Owns the memory bound: oldest outcomes go first once their arrays weigh more than `kept_bytes`.
Pure: no sockets, no clock.
"""

from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass

import numpy as np

from ..bus.ids import LaneId
from ..bus.messages import Message

# What one entry costs beside its arrays: keys, ids, a fingerprint and a small message.
_ENTRY_BYTES = 512


@dataclass(frozen=True, slots=True)
class Finished:
    """How an operation ended. fingerprint None: it never arrived, so any content gets `outcome`. refusal: a
    refusal was sent in its place, so the operation itself gets `outcome`, too."""

    fingerprint: bytes | None
    outcome: Message
    size_bytes: int
    refusal: bool = False


class Outcomes:
    """What became of (lane, seq), newest kept longest."""

    def __init__(self, *, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._size_bytes = 0
        self._finished: OrderedDict[tuple[LaneId, int], Finished] = OrderedDict()
        self._of_lane: dict[LaneId, set[int]] = {}

    def __len__(self) -> int:
        return len(self._finished)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def get(self, lane: LaneId, seq: int) -> Finished | None:
        return self._finished.get((lane, seq))

    def forget(self, lane: LaneId, begin: int) -> None:
        """What ended on a lane from a number on never did: it runs again."""
        for seq in [seq for seq in self._of_lane.get(lane, ()) if seq >= begin]:
            self._size_bytes -= self._finished.pop((lane, seq)).size_bytes
            self._unlist(lane, seq)

    def put(
        self,
        lane: LaneId,
        seq: int,
        fingerprint: bytes | None,
        outcome: Message,
        *,
        refusal: bool = False,
    ) -> None:
        assert (lane, seq) not in self._finished, "an operation has one outcome"
        entry = Finished(fingerprint, outcome, _ENTRY_BYTES + array_bytes(outcome), refusal)
        self._finished[lane, seq] = entry
        self._of_lane.setdefault(lane, set()).add(seq)
        self._size_bytes += entry.size_bytes
        # The newest stays even if it alone is over the bound: its own resend is the likeliest.
        while self._size_bytes > self._kept_bytes and len(self._finished) > 1:
            key, oldest = self._finished.popitem(last=False)
            self._size_bytes -= oldest.size_bytes
            self._unlist(*key)

    def _unlist(self, lane: LaneId, seq: int) -> None:
        numbers = self._of_lane[lane]
        numbers.remove(seq)
        if not numbers:
            del self._of_lane[lane]


def array_bytes(value: object) -> int:
    """Bytes of all arrays that a message holds, nested ones included."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(array_bytes(getattr(value, field.name)) for field in fields(value))
    return 0
