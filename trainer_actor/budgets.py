"""What may lie on the device, in host memory and on disk, and what is set aside for whom. Pure.

Admission sets the whole state of every adapter aside that may change, so that room can always be made
in a host and a disk that never hold more than their budgets. Proof: the states that must be kept
take T bytes, and none more than L. Making room for one writes copies to disk until it fits, so after
it the host keeps more than host_bytes - 2 L of them, or all that there were; the disk then holds less
than T - (host_bytes - 2 L), or nothing more. So T <= host_bytes + disk_bytes - 2 L is enough. So is
T <= host_bytes, where no copy ever has to leave, and T <= disk_bytes, where all may.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..bus.errors import OutOfSlots
from ..bus.ids import AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    slots: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of an adapter. row: on the device. state: elsewhere, at most. fresh: elsewhere, as it begins."""

    row: int
    state: int
    fresh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The device as it is now: what the schedule may plan with. row_bytes_of: of all admitted adapters."""

    slots: int
    device_bytes: int
    on_device: frozenset[AdapterId]
    pinned: frozenset[AdapterId]
    row_bytes_of: Mapping[AdapterId, int]

    def row_bytes(self, adapter: AdapterId) -> int:
        return self.row_bytes_of[adapter]

    def fits(self, adapters: Collection[AdapterId]) -> bool:
        """Whether they can lie on the device together, beside what is pinned there."""
        together = self.pinned.union(adapters)
        size = sum(map(self.row_bytes, together))
        return len(together) <= self.slots and size <= self.device_bytes


class Reservations:
    """What admitted adapters need at most. Those that never changed need nothing, but may begin to."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._sizes: Counter[int] = Counter()  # admitted adapters of each size: few sizes, many adapters
        self._total = 0
        self._count = 0

    def admit(self, sizes: Sizes, *, given_up: int) -> None:
        """`given_up`: bytes set aside that their adapters would give back for another.

        Raises:
            OutOfSlots: the adapter could never be placed, or not now. Nothing changed.
        """
        budgets = self._budgets
        if sizes.row > budgets.device_bytes:
            raise OutOfSlots(
                f"the adapter takes {sizes.row} bytes on the device, and trainer.device_bytes is "
                f"{budgets.device_bytes}; choose a smaller rank, in steps of 8, or raise trainer.device_bytes"
            )
        if sizes.state > budgets.host_bytes:
            raise OutOfSlots(
                f"the adapter's training state takes {sizes.state} bytes of host memory, and "
                f"trainer.host_bytes is {budgets.host_bytes}; choose a smaller rank, in steps of 8, or raise "
                "trainer.host_bytes"
            )
        self.check(sizes, given_up=given_up)
        self._sizes[sizes.state] += 1

    def leave(self, sizes: Sizes) -> None:
        self._sizes[sizes.state] -= 1
        if not self._sizes[sizes.state]:
            del self._sizes[sizes.state]

    def take(self, sizes: Sizes) -> None:
        """Set an admitted adapter's whole state aside, once it was checked."""
        self._total += sizes.state
        self._count += 1

    def give_back(self, sizes: Sizes) -> None:
        self._total -= sizes.state
        self._count -= 1

    def check(self, sizes: Sizes, *, given_up: int = 0) -> None:
        """Raises OutOfSlots: one more state would be more than can be kept."""
        size = sizes.state
        host, disk = self._budgets.host_bytes, self._budgets.disk_bytes
        largest = max(size, max(self._sizes, default=0))
        if self._total + max(0, size - given_up) > max(host, disk, host + disk - 2 * largest):
            raise OutOfSlots(
                f"no room for another training state of {size} bytes: {self._count} adapters have "
                f"{self._total} bytes set aside already, trainer.host_bytes is {host} and "
                f"trainer.disk_bytes {disk}; delete adapters, end sessions that need theirs no more, or raise "
                "trainer.disk_bytes"
            )
