"""Whether what a checkpoint's record speaks of still lies on the disk: nobody tells the bridge when it goes.

A few system calls for each. Housekeeping looks at all of them, some at a time; who loads one looks at that.
"""

import stat
from pathlib import Path

import msgspec

from ..bus.layout import StateLayout
from .records import CheckpointRecord

_MOST_DESCRIPTION_BYTES = 2**20


class _Described(msgspec.Struct):
    """What is read of a checkpoint.json."""

    size_bytes: int


def is_whole(layout: StateLayout, record: CheckpointRecord) -> bool:
    """What cannot be looked at just now is not said to be gone."""
    try:
        match record.kind:
            case "training":
                home = layout.checkpoint(record.adapter, record.name)
                # Overwritten while we look, it lies in the next directory then: two looks.
                return any(_holds_state(each) for _ in range(2) for each in home.iterdir())
            case "sampler":
                weights = layout.version(record.adapter, record.version) / "adapter_model.safetensors"
                return _size_bytes(weights) > 0
            case "external":
                files = (layout.exports / record.token).iterdir()
                return sum(_size_bytes(each) for each in files) == record.size_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _holds_state(directory: Path) -> bool:
    try:
        description = directory / "checkpoint.json"
        if not 0 < _size_bytes(description) <= _MOST_DESCRIPTION_BYTES:
            return False
        described = msgspec.json.decode(description.read_bytes(), type=_Described)
        return _size_bytes(directory / "state.safetensors") == described.size_bytes
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return False


def _size_bytes(file: Path) -> int:
    """0 where it is no plain file."""
    found = file.stat()
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
