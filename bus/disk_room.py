"""How much of the disk is whose: what tenants ask to be kept gives way to what everybody goes on from."""

import shutil
from pathlib import Path

from .errors import StorageFailed

# Kept free on the disk, so that a small file such as adapter.json can always still be written.
_SPARE_BYTES = 16 * 2**20
# What tenants ask to be kept leaves more: an eighth of the disk, but no more than this. Without room for the
# journal and for snapshots nobody goes on, and neither is ever asked for.
_TENANTS_SPARE_BYTES = 512 * 2**20


def mib_text(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def check_free(directory: Path, size_bytes: int, *, what: str) -> None:
    """Refuse before any damage if `size_bytes` would not fit.

    Raises:
        StorageFailed: the message holds the numbers.
    """
    free, _ = _free_and_total(directory, what=what)
    if free < size_bytes + _SPARE_BYTES:
        raise StorageFailed(f"cannot {what}: it takes {size_bytes} bytes and the disk has {free} free")


def check_free_for_tenant(directory: Path, size_bytes: int, *, what: str, promised_bytes: int = 0) -> None:
    """As `check_free`, for what a tenant asked to be kept: refused while the journal and snapshots have room.

    promised_bytes: of what else is being written just now. Some of it may be on the disk already: rather
    too little is given out than too much.
    """
    free, total = _free_and_total(directory, what=what)
    free -= promised_bytes
    spare = max(_SPARE_BYTES, min(_TENANTS_SPARE_BYTES, total // 8))
    if free < size_bytes + spare:
        raise StorageFailed(
            f"cannot {what}: it takes {size_bytes} bytes and the disk has {free} free, of which {spare} are kept "
            "for the journal and snapshots: delete checkpoints or sampler weights that are not needed any more"
        )


def _free_and_total(directory: Path, *, what: str) -> tuple[int, int]:
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        usage = shutil.disk_usage(existing)
    except OSError as error:
        raise StorageFailed(f"cannot {what}: {error.strerror or error}; nothing was changed") from error
    return usage.free, usage.total
