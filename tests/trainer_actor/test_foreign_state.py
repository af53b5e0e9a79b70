"""What somebody else left in the state directory: links, pipes, files without end. None of it is ours."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.checkpoints import CheckpointRecord, Checkpoints
from loractl.trainer_actor.publishing import Versions
from loractl.trainer_actor.registry import open_registry
from loractl.trainer_actor.snapshots import Snapshots

A = AdapterId("ad-" + "a" * 32)
LORA, BASE = LoraSpec(rank=4, alpha=8.0, seed=1), "tiny 0123"


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path / "state")


def save(layout: StateLayout, name: str = "first") -> CheckpointRecord:
    tensors = {"main": torch.ones(4)}
    return Checkpoints(layout).save(A, name, tensors, {}, step=1, lora=LORA, base=BASE)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**40)


def deep(file: Path) -> None:
    file.write_text('{"x": ' + "[" * 100_000)


@pytest.mark.parametrize("spoil", [os.mkfifo, endless, huge, deep])
def test_a_description_that_cannot_be_read_describes_nothing(
    layout: StateLayout, spoil: Callable[[Path], None]
) -> None:
    registry = open_registry(layout, BASE)
    registry.add(registry.draft(TenantId("ann"), "poet", LORA, now_unix_s=1.0, adapter=A))
    save(layout)
    descriptions = [*layout.root.rglob("*.json")]

    for file in descriptions:
        file.unlink()
        spoil(file)

    assert len(descriptions) == 2
    assert Checkpoints(layout).all(A) == []
    assert open_registry(layout, BASE).all() == []


@pytest.mark.parametrize("depth", ["adapter", "checkpoints", "name", "one"])
def test_what_a_link_leads_to_is_neither_listed_nor_touched(
    layout: StateLayout, tmp_path: Path, depth: str
) -> None:
    record = save(layout)
    home = layout.checkpoint(A, "first")
    places = {"adapter": layout.adapter(A), "checkpoints": home.parent, "name": home, "one": home / "1"}
    outside = tmp_path / "outside"
    places[depth].rename(outside)
    places[depth].symlink_to(outside)
    (outside / ".aside-0123").mkdir()
    before = sorted(outside.rglob("*"))

    checkpoints = Checkpoints(layout)
    checkpoints.sweep(A)
    Snapshots(layout).sweep(A)

    assert checkpoints.all(A) == []
    if depth != "one":
        with pytest.raises(StorageFailed, match="a link lies"):
            save(layout, record.name)
    assert sorted(outside.rglob("*")) == before


def test_a_linked_version_is_none_and_its_files_stay(layout: StateLayout, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "1").mkdir(parents=True)
    layout.versions.mkdir(parents=True)
    (layout.versions / A).symlink_to(outside)
    versions = Versions(layout)

    versions.scan([A], [A])
    with pytest.raises(StorageFailed, match="a link lies"):
        versions.drop(A, 1)

    assert versions.all() == ()
    assert (outside / "1").is_dir()


def test_numbers_without_end_leave_room_for_the_next_one(layout: StateLayout) -> None:
    home = layout.checkpoint(A, "first")
    for name in ("9" * 200, "\N{ARABIC-INDIC DIGIT THREE}", "41"):
        (home / name).mkdir(parents=True)

    assert save(layout).sequence == 42


def test_a_file_where_adapters_should_lie_is_told(layout: StateLayout) -> None:
    layout.root.mkdir()
    layout.adapters.write_text("mine")

    with pytest.raises(StorageFailed, match="open the directory of adapters"):
        open_registry(layout, BASE)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../x"},
        {"last_version": 10**30},
        {"lora": {"rank": 0}},
        {"lora": {"rank": 2**40}},
        {"lora": {"alpha": -1.0}},
    ],
    ids=str,
)
def test_an_adapter_that_nobody_can_have_made_is_none(layout: StateLayout, changed: dict[str, Any]) -> None:
    registry = open_registry(layout, BASE)
    registry.add(registry.draft(TenantId("ann"), "poet", LORA, now_unix_s=1.0, adapter=A))
    file = layout.adapter(A) / "adapter.json"
    told = json.loads(file.read_bytes())

    file.write_text(json.dumps({**told, **changed, "lora": {**told["lora"], **changed.get("lora", {})}}))

    assert open_registry(layout, BASE).all() == []
    assert file.exists()
