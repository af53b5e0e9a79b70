"""Checkpoints on disk: whole or absent, the newest known, nothing foreign believed."""

import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loractl.bus import disk_room
from loractl.bus.errors import (
    CheckpointExists,
    CheckpointMismatch,
    CheckpointNotFound,
    DiskQuotaExceeded,
    InvalidName,
    StorageFailed,
)
from loractl.bus.ids import AdapterId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.checkpoints import CheckpointRecord, Checkpoints, check_fits
from loractl.trainer_actor.disk_quota import Room

A = AdapterId("ad-" + "a" * 32)
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
BASE = "tiny 0123"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(StateLayout(tmp_path))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return StateLayout(tmp_path).adapter(A) / "checkpoints"


def save(to: Checkpoints, name: str, step: int = 0) -> CheckpointRecord:
    return to.save(A, name, tensors(step), {"step": str(step)}, step=step, lora=LORA, base=BASE)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"main": torch.full((5,), float(step)), "exp_avg": torch.arange(4.0).reshape(2, 2).T}


def test_what_is_loaded_is_what_was_saved(checkpoints: Checkpoints) -> None:
    record = save(checkpoints, "first", step=3)

    loaded, metadata = checkpoints.load(checkpoints.find(A, "first"))

    assert checkpoints.find(A, "first") == record
    assert metadata["step"] == "3"
    assert loaded.keys() == tensors(3).keys()
    assert all(torch.equal(loaded[key], value) for key, value in tensors(3).items())


def test_the_newest_is_known_to_a_fresh_start_whatever_its_step(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    save(checkpoints, "late", step=9)
    save(checkpoints, "again", step=2)
    save(checkpoints, "first", step=5)

    newest = Checkpoints(StateLayout(tmp_path)).newest(A)

    assert newest is not None
    assert (newest.name, newest.step) == ("first", 5)


def test_a_name_is_used_once_unless_it_may_be_overwritten(checkpoints: Checkpoints) -> None:
    save(checkpoints, "first")

    with pytest.raises(CheckpointExists):
        checkpoints.check_new(A, "first", overwrite=False)

    checkpoints.check_new(A, "first", overwrite=True)
    checkpoints.check_new(A, "second", overwrite=False)


def test_overwriting_leaves_one_checkpoint_the_new_one(checkpoints: Checkpoints, directory: Path) -> None:
    save(checkpoints, "first", step=1)
    save(checkpoints, "first", step=2)

    assert checkpoints.find(A, "first").step == 2
    assert len(checkpoints.all(A)) == 1
    assert len(list(directory.glob("*/*"))) == 1


def test_an_unknown_name_is_not_found(checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointNotFound):
        checkpoints.find(A, "nothing")
    assert checkpoints.newest(A) is None


def test_junk_and_half_written_directories_are_ignored(checkpoints: Checkpoints, directory: Path) -> None:
    kept = save(checkpoints, "first")
    home = next(directory.iterdir())
    (directory / "step_latest").mkdir()
    (directory / "step_latest" / "1").mkdir()
    (home / "99").mkdir()
    (home / "7").mkdir()
    (home / "7" / "checkpoint.json").write_bytes((home / "1" / "checkpoint.json").read_bytes())
    (home / "notes.txt").write_text("mine")

    assert checkpoints.all(A) == [kept]
    assert save(checkpoints, "first").sequence == 100


def test_a_crash_while_saving_leaves_the_old_checkpoint_and_is_swept_up(
    checkpoints: Checkpoints, directory: Path
) -> None:
    kept = save(checkpoints, "first", step=1)
    home = next(directory.iterdir())
    aside = home / ".aside-0123"
    aside.mkdir()
    (aside / "state.safetensors").write_bytes(b"half")

    assert checkpoints.find(A, "first") == kept
    checkpoints.sweep(A)

    assert not aside.exists()
    assert checkpoints.find(A, "first") == kept


def test_a_crash_between_writing_and_removing_the_old_one_keeps_the_new_one(
    checkpoints: Checkpoints, directory: Path, tmp_path: Path
) -> None:
    save(checkpoints, "first", step=1)
    old = next(directory.glob("*/1"))
    copy = tmp_path / "copy"
    old.rename(copy)
    new = save(checkpoints, "second", step=2)
    target = next(path for path in directory.glob("*/1"))
    overwritten = save(checkpoints, "second", step=3)
    copy.rename(directory / old.parent.name / "1")

    checkpoints.sweep(A)

    assert new.sequence == int(target.name) == 1
    assert checkpoints.find(A, "second") == overwritten
    assert checkpoints.find(A, "first").step == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_refused(checkpoints: Checkpoints, directory: Path, damage: str) -> None:
    record = save(checkpoints, "first")
    file = next(directory.glob("*/*/state.safetensors"))
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        data[-1] ^= 1
        file.write_bytes(data[:-1] if damage == "cut" else data)

    with pytest.raises(CheckpointMismatch, match="damaged"):
        checkpoints.load(record)


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_whole_or_refused(checkpoints: Checkpoints) -> None:
    def read(record: CheckpointRecord) -> str:
        try:
            return "whole" if torch.equal(checkpoints.load(record)[0]["main"], tensors(1)["main"]) else "torn"
        except CheckpointMismatch:
            return "refused"

    ends = set()
    with ThreadPoolExecutor(1) as reader:
        for _ in range(40):
            record = save(checkpoints, "first", step=1)
            reading = reader.submit(read, record)
            checkpoints.delete(A, "first")
            ends.add(reading.result())

    assert ends <= {"whole", "refused"}


def test_a_full_disk_is_refused_before_any_damage(
    checkpoints: Checkpoints, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save(checkpoints, "first", step=1)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000, total=2000))

    with pytest.raises(StorageFailed, match="1000 free"):
        save(checkpoints, "first", step=2)

    assert checkpoints.all(A) == [kept]
    assert len(list(directory.glob("*/*"))) == 1


def test_a_disk_that_refuses_while_tensors_are_written_is_the_clients_error(
    checkpoints: Checkpoints, directory: Path
) -> None:
    kept = save(checkpoints, "first", step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(StorageFailed, match="File too large"):
            save(checkpoints, "first", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert checkpoints.all(A) == [kept]
    assert len(list(directory.glob("*/*"))) == 1


def test_a_mismatch_names_every_difference() -> None:
    record = CheckpointRecord(
        adapter=A, name="first", sequence=1, step=1, lora=LORA, base=BASE, digest="", size_bytes=0
    )
    other = LoraSpec(rank=8, alpha=8.0, seed=2, train_mlp=False)

    with pytest.raises(CheckpointMismatch) as caught:
        check_fits(record, other, "other 4567")

    for part in ("rank 4 is not 8", "train_mlp True is not False", "base model tiny 0123 is not other 4567"):
        assert part in caught.value.message
    assert "alpha" not in caught.value.message
    check_fits(record, LoraSpec(rank=4, alpha=8.0, seed=99), BASE)


@given(st.text(max_size=60))
def test_hostile_names_stay_inside_the_adapters_directory(name: str) -> None:
    layout = StateLayout(Path("/state"))

    path = layout.checkpoint(A, name)

    assert path.parent == layout.adapter(A) / "checkpoints"
    assert path.name.isalnum()


def test_a_deleted_checkpoint_is_gone_and_the_others_stay(checkpoints: Checkpoints) -> None:
    kept = save(checkpoints, "first", step=1)
    save(checkpoints, "second", step=2)

    checkpoints.delete(A, "second")

    assert checkpoints.all(A) == [kept]
    with pytest.raises(CheckpointNotFound):
        checkpoints.delete(A, "second")


@pytest.mark.parametrize("name", ["(first)", "../first", ""])
def test_only_names_that_a_client_can_choose_are_deleted(checkpoints: Checkpoints, name: str) -> None:
    save(checkpoints, "first")

    with pytest.raises((InvalidName, CheckpointNotFound)):
        checkpoints.delete(A, name)

    assert len(checkpoints.all(A)) == 1


def test_a_checkpoint_that_was_being_overwritten_is_deleted_with_the_older_one(
    checkpoints: Checkpoints, directory: Path
) -> None:
    first = save(checkpoints, "first", step=1)
    older = directory.parent / "older"
    place = StateLayout(directory.parents[2]).checkpoint(A, "first") / str(first.sequence)
    shutil.copytree(place, older)
    save(checkpoints, "first", step=2)
    older.rename(place)
    assert [each.step for each in checkpoints.all(A)] == [1, 2]

    checkpoints.delete(A, "first")

    assert checkpoints.all(A) == []


# --- how many may stay -------------------------------------------------------------------------------


def test_a_checkpoint_that_its_tenant_has_no_room_for_is_not_written(checkpoints: Checkpoints) -> None:
    kept = save(checkpoints, "first", step=1)

    def put(numbers: int) -> CheckpointRecord:
        return checkpoints.save(
            A,
            "second",
            {"main": torch.ones(numbers)},
            {},
            step=0,
            lora=LORA,
            base=BASE,
            room=Room(has_bytes=400, most_bytes=800),
        )

    with pytest.raises(
        DiskQuotaExceeded, match=r"cannot save checkpoint 'second'.* 400 of .* 800 .* takes 404"
    ):
        put(101)

    assert checkpoints.all(A) == [kept]
    assert checkpoints.size_bytes(A) == kept.size_bytes
    assert put(100).name == "second"


def test_the_newest_stay_when_only_so_many_may(tmp_path: Path) -> None:
    checkpoints = Checkpoints(StateLayout(tmp_path), keep=2)

    for step, name in enumerate(("one", "two", "one", "three")):
        save(checkpoints, name, step=step)

    assert [(each.name, each.step) for each in checkpoints.all(A)] == [("one", 2), ("three", 3)]
