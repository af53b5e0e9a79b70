"""A disk that is really full: refused before any damage, training goes on, and saving does when there is space again."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.messages import (
    CheckpointSaved,
    Done,
    LoadCheckpoint,
    SaveCheckpoint,
    SnapshotTaken,
    StateLoaded,
    UnloadAdapter,
)
from loractl.tests.trainer_actor.loop.harness import Adapter, Office, create, same, start, stop

Mounted = Callable[..., Office]


@pytest.fixture
def on_a_small_disk(open_office: Callable[..., Office]) -> Iterator[Mounted]:
    """An office whose adapters' files lie on a tmpfs of their own."""
    mounted: list[Path] = []

    def open_one(options: str) -> Office:
        office = open_office("journal.snapshot_bytes=1")
        office.layout.adapters.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(office.layout.adapters)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        mounted.append(office.layout.adapters)
        return office

    yield open_one
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def last(adapter: Adapter) -> list[np.ndarray]:
    """What the adapter says now, without a trace."""
    adapter.forward_backward(999, forward_only=True)
    return [adapter.results.pop()]


def use_up_bytes(disk: Path) -> Callable[[], None]:
    """All but a megabyte."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, free - 2**20)
    return ballast.unlink


def use_up_files(disk: Path) -> Callable[[], None]:
    """All but three: enough to begin with a checkpoint or a snapshot, and not to end it."""
    files = [disk / f"file-{number}" for number in range(os.statvfs(disk).f_ffree - 3)]
    for file in files:
        file.touch()

    def free() -> None:
        for file in files:
            file.unlink()

    return free


def left_aside(office: Office) -> list[Path]:
    return list(office.layout.adapters.rglob(".aside-*"))


@pytest.mark.parametrize(
    ("options", "use_up"), [("size=24m", use_up_bytes), ("size=64m,nr_inodes=80", use_up_files)]
)
def test_a_full_disk_refuses_without_damage_and_serves_again(
    on_a_small_disk: Mounted, options: str, use_up: Callable[[Path], Callable[[], None]]
) -> None:
    office = on_a_small_disk(options)
    trainer, _ = start(office)
    adapter, other = create(office, "poet"), create(office, "other", seed=9)
    adapter.forward_backward(1)
    adapter.step()
    adapter.run(SaveCheckpoint, CheckpointSaved, name="one")
    at_one = last(adapter)
    at_other = last(other)
    while office.wait_for_report(SnapshotTaken).adapter != other.id:
        pass

    free = use_up(office.layout.adapters)
    saved = adapter.refused(SaveCheckpoint, name="two")
    overwritten = adapter.refused(SaveCheckpoint, name="one", overwrite=True)
    loaded = other.refused(LoadCheckpoint, source=adapter.id, name="one")
    left = office.refused(UnloadAdapter(adapter=other.id))

    assert [each.code for each in (saved, overwritten, loaded, left)] == ["storage_failed"] * 4
    assert "nothing was changed" in saved.message or "free" in saved.message
    assert not left_aside(office)
    assert same(last(other), at_other)
    adapter.forward_backward(2)
    assert adapter.step().step == 2
    at_two = last(adapter)

    free()
    assert adapter.run(SaveCheckpoint, CheckpointSaved, name="two").step == 2
    assert other.run(LoadCheckpoint, StateLoaded, source=adapter.id, name="one").step == 1
    assert same(last(other), at_one)
    office.ask(UnloadAdapter(adapter=other.id), Done)
    stop(office, trainer)
    office.reports.clear()
    trainer, _ = start(office)
    adapter.reopen()
    assert same(last(adapter), at_two)
    stop(office, trainer)
