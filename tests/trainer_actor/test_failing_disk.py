"""A disk that fails at bad moments: what was told to have failed is not there, and what is there was told."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.tests.trainer_actor.test_snapshots import draft
from loractl.trainer_actor.checkpoints import CheckpointRecord, Checkpoints
from loractl.trainer_actor.snapshots import Snapshots

A = AdapterId("ad-" + "a" * 32)
Fails = Callable[[Path], bool]


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path)


@pytest.fixture
def checkpoints(layout: StateLayout) -> Checkpoints:
    return Checkpoints(layout, keep=2)


def save(to: Checkpoints, name: str, step: int = 0) -> CheckpointRecord:
    lora = LoraSpec(rank=4, alpha=8.0, seed=1)
    return to.save(A, name, {"main": torch.ones(5)}, {}, step=step, lora=lora, base="tiny")


def broken() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def no_lists(monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    """Directories of which the disk gives no list."""
    listdir = os.listdir

    def failing(path: Path) -> list[str]:
        if fails(Path(path)):
            raise broken()
        return listdir(path)

    monkeypatch.setattr(os, "listdir", failing)


def no_syncs(monkeypatch: pytest.MonkeyPatch, fails: Fails) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if fails(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise broken()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def test_a_save_whose_name_cannot_be_made_sure_of_leaves_nothing(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save(checkpoints, "first", step=1)
    home = layout.checkpoint(A, "first")
    no_syncs(monkeypatch, lambda path: path == home)

    with pytest.raises(StorageFailed, match="nothing was changed"):
        save(checkpoints, "first", step=2)

    assert checkpoints.all(A) == [kept]
    assert [path.name for path in home.iterdir()] == ["1"]


def test_a_save_that_can_neither_be_made_sure_of_nor_undone_says_that_it_may_be_there(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    home = layout.checkpoint(A, "first")

    def failing(source: Path, target: Path) -> None:
        if source == home / "1":
            raise broken()
        rename(source, target)

    no_syncs(monkeypatch, lambda path: path == home)
    monkeypatch.setattr(os, "rename", failing)

    with pytest.raises(StorageFailed, match="may have been done"):
        save(checkpoints, "first")

    assert checkpoints.find(A, "first").sequence == 1


def test_a_deletion_that_cannot_be_made_sure_of_did_not_happen(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save(checkpoints, "first")
    with monkeypatch.context() as patched:
        no_syncs(patched, lambda path: path == layout.checkpoint(A, "first"))

        with pytest.raises(StorageFailed, match="nothing was changed"):
            checkpoints.delete(A, "first")

    assert checkpoints.find(A, "first") == kept
    checkpoints.delete(A, "first")
    assert checkpoints.all(A) == []


def test_a_checkpoint_is_saved_whatever_becomes_of_the_older_ones(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = layout.checkpoint(A, "first")
    save(checkpoints, "first", step=1)
    with monkeypatch.context() as patched:
        no_lists(patched, lambda path: path == home and (home / "2").exists())

        saved = save(checkpoints, "first", step=2)

    assert checkpoints.find(A, "first") == saved
    assert len(checkpoints.all(A)) == 2
    checkpoints.sweep(A)
    assert checkpoints.all(A) == [saved]


def test_what_cannot_be_looked_for_is_the_disks_fault_and_no_bug(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(layout)
    save(checkpoints, "first")
    snapshots.write(draft())
    no_lists(monkeypatch, lambda path: layout.adapter(A) in path.parents)

    for work in (
        lambda: checkpoints.find(A, "first"),
        lambda: checkpoints.check_new(A, "first", overwrite=False),
        lambda: checkpoints.delete(A, "first"),
        lambda: save(checkpoints, "second"),
        lambda: snapshots.newest(A),
        lambda: snapshots.write(draft()),
    ):
        with pytest.raises(StorageFailed, match="Input/output error"):
            work()


def test_cleaning_up_goes_as_far_as_the_disk_lets_it(
    checkpoints: Checkpoints, layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(layout)
    save(checkpoints, "first")
    for _ in range(3):
        snapshots.write(draft())
    snapshots.keep(A, "2")
    with monkeypatch.context() as patched:
        no_lists(patched, lambda path: layout.adapter(A) in path.parents)

        checkpoints.sweep(A)
        snapshots.sweep(A)
        snapshots.keep(A, "3")

    snapshots.keep(A, "4")
    assert [record.number for record in snapshots.all(A)] == [3, 4]
