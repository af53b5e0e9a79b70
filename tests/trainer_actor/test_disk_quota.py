"""What tenants have on disk, and what is kept free of it for everybody."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loractl.bus import disk_room
from loractl.bus.errors import DiskQuotaExceeded, StorageFailed
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.checkpoints import Checkpoints
from loractl.trainer_actor.disk_quota import DiskQuota
from loractl.trainer_actor.snapshots import Draft, Snapshots
from loractl.trainer_actor.windows import Window

A, B = AdapterId("ad-" + "a" * 32), AdapterId("ad-" + "b" * 32)
ANN, BOB = TenantId("ann"), TenantId("bob")
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
TENSORS = {"main": torch.ones(100)}


def test_checkpoints_and_versions_of_a_tenant_count_together_and_nobody_elses() -> None:
    quota = DiskQuota(1000)
    quota.takes(ANN, A, 300)
    quota.takes(ANN, (A, 1), 200)
    quota.takes(BOB, B, 999)

    quota.room(ANN).check("publish a version", 500)
    with pytest.raises(
        DiskQuotaExceeded, match=r"cannot publish a version.* 500 of at most 1,000.* takes 501"
    ):
        quota.room(ANN).check("publish a version", 501)


def test_what_is_counted_again_counts_once_and_what_is_gone_counts_no_more() -> None:
    quota = DiskQuota(1000)
    quota.takes(ANN, A, 300)
    quota.takes(ANN, A, 400)
    assert quota.taken(ANN) == 400

    quota.gone(A)
    quota.gone(A)

    assert quota.taken(ANN) == 0


def test_what_goes_when_the_new_is_there_makes_room_for_it() -> None:
    quota = DiskQuota(1000)
    quota.takes(ANN, A, 900)

    quota.room(ANN, replaced_bytes=300).check("save", 400)


def test_without_a_bound_there_is_room() -> None:
    quota = DiskQuota()
    quota.takes(ANN, A, 2**60)

    quota.room(ANN).check("save", 2**60)


def test_a_tenants_save_is_refused_while_snapshots_still_find_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=500 * 2**20, total=100 * 2**30)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _: usage)
    layout = StateLayout(tmp_path)

    with pytest.raises(StorageFailed, match="kept for the journal and snapshots"):
        Checkpoints(layout).save(A, "first", TENSORS, {}, step=1, lora=LORA, base="tiny")

    draft = Draft(
        adapter=A,
        step=1,
        lora=LORA,
        base="tiny",
        window=Window(),
        metadata={},
        tensors={"main": TENSORS},
        unchanged=(),
        before=None,
    )
    assert Snapshots(layout).write(draft).number == 1


def test_of_a_small_disk_only_a_share_is_kept_from_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=130 * 2**20, total=2**30)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda _: usage)

    disk_room.check_free_for_tenant(tmp_path, 2 * 2**20, what="save")
    with pytest.raises(StorageFailed):
        disk_room.check_free_for_tenant(tmp_path, 3 * 2**20, what="save")
