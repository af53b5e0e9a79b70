"""The moves of training states between device, host memory and disk, as data. size: bytes."""

from dataclasses import dataclass

from ..bus.ids import AdapterId


@dataclass(frozen=True, slots=True)
class Draw:
    """Make a copy in host memory from the adapter's seed."""

    adapter: AdapterId
    size: int


@dataclass(frozen=True, slots=True)
class Read:
    """Make a copy in host memory from the file, which stays."""

    adapter: AdapterId
    size: int


@dataclass(frozen=True, slots=True)
class Load:
    """Open a row in the free slot and fill it from the copy, which stays."""

    adapter: AdapterId
    slot: int


@dataclass(frozen=True, slots=True)
class WriteBack:
    """Bring the copy in host memory up to the row, which stays."""

    adapter: AdapterId


@dataclass(frozen=True, slots=True)
class Vacate:
    """Close the row: copy, file or seed hold the same."""

    adapter: AdapterId
    slot: int


@dataclass(frozen=True, slots=True)
class Spill:
    """Write the copy to a file; the copy stays."""

    adapter: AdapterId
    size: int


@dataclass(frozen=True, slots=True)
class DropCopy:
    """Let go of the copy: row, file or seed hold the same, or more."""

    adapter: AdapterId
    size: int


@dataclass(frozen=True, slots=True)
class DropFile:
    """Remove the file: row or copy hold the same, or more."""

    adapter: AdapterId
    size: int


Move = Draw | Read | Load | WriteBack | Vacate | Spill | DropCopy | DropFile
