"""What a training run was started with, kept beside the daemon's state so that `--resume` can compare.

One small JSON file per adapter id, written by the client. The weights and the step live with the
trainer; this file only says which data and settings they came from.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..bus.errors import CheckpointMismatch
from ..bus.private_files import make_private, open_private
from .run_plan import RunSettings, differences


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """settings: as the run was last started. data: the file's path; data_digest: of its datums."""

    settings: RunSettings
    data: str
    data_digest: str
    rows: int


def read_record(file: Path) -> RunRecord | None:
    """The record of an earlier run, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunRecord)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def write_record(file: Path, record: RunRecord) -> None:
    """Write aside and rename, so that a reader never sees half a record. It names the user's files: it is theirs."""
    make_private(file.parent)
    aside = file.with_name(f"{file.name}.{os.getpid()}.new")
    with os.fdopen(open_private(aside), "wb") as written:
        written.write(msgspec.json.format(msgspec.json.encode(record), indent=2))
    aside.replace(file)


def remove_record(file: Path) -> None:
    file.unlink(missing_ok=True)


def check_same_run(name: str, recorded: RunRecord, wanted: RunRecord) -> None:
    """Refuse to go on with a run whose next steps would not be the ones it would have taken.

    Raises:
        CheckpointMismatch: names every difference.
    """
    found = differences(recorded.settings, wanted.settings)
    if recorded.data_digest != wanted.data_digest:
        found.append(
            f"other training data ({wanted.rows} rows from {wanted.data}; so far: {recorded.rows} rows from "
            f"{recorded.data}) or another chat template"
        )
    if found:
        raise CheckpointMismatch(
            f"cannot resume {name!r} with {'; '.join(found)}: leave these options out, or train another adapter"
        )
