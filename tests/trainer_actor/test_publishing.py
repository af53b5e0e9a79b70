"""Published versions on disk."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import CheckpointMismatch, NotFinite, VersionNotFound
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec, VersionRecord
from loractl.trainer_actor.disk_quota import DiskQuota
from loractl.trainer_actor.publishing import Versions, probe_sequence

A, B = AdapterId("ad-" + "a" * 32), AdapterId("ad-" + "b" * 32)
ME = TenantId("me")


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path)


def record(number: int, adapter: AdapterId = A) -> VersionRecord:
    return VersionRecord(
        adapter=adapter,
        tenant=ME,
        name="poet",
        number=number,
        step=3,
        directory="",
        digest="",
        lora=LoraSpec(rank=4, alpha=8.0, seed=1),
        modules=7,
        probe_tokens=(1, 2, 3),
        probe_logprobs=(-0.5, -1.25),
    )


def publish(versions: Versions, version: VersionRecord, config_json: str, weights: bytes) -> VersionRecord:
    whole = versions.write(version, config_json, weights)
    versions.add(whole, len(config_json) + len(weights))
    return whole


def test_a_version_lies_whole_in_its_directory(layout: StateLayout) -> None:
    written = Versions(layout).write(record(1), "{}", b"weights")

    directory = Path(written.directory)
    assert directory == layout.version(A, 1)
    assert written.digest == hashlib.sha256(b"weights").hexdigest()
    assert {path.name for path in directory.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "version.json",
    }


def test_a_restart_finds_what_was_published(layout: StateLayout) -> None:
    versions = Versions(layout)
    written = [publish(versions, record(number), "{}", b"w%d" % number) for number in (1, 2)]

    again = Versions(layout)
    again.scan([A], [A])

    assert again.all() == tuple(written)
    assert again.newest(A) == 2


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "version.json"])
def test_a_version_that_is_not_whole_is_ignored(layout: StateLayout, file: str) -> None:
    versions = Versions(layout)
    kept = publish(versions, record(1), "{}", b"one")
    broken = publish(versions, record(2), "{}", b"two")
    (Path(broken.directory) / file).unlink()

    versions.scan([A], [A])

    assert versions.all() == (kept,)


def test_changed_weights_are_ignored(layout: StateLayout) -> None:
    versions = Versions(layout)
    written = publish(versions, record(1), "{}", b"one")
    (Path(written.directory) / "adapter_model.safetensors").write_bytes(b"two")

    versions.scan([A], [A])

    assert versions.all() == ()


def test_a_restart_reads_no_weights_that_nobody_wrote_to_and_damage_is_found_where_they_are_used(
    layout: StateLayout,
) -> None:
    versions = Versions(layout)
    written = publish(versions, record(1), "{}", b"one")
    weights = Path(written.directory) / "adapter_model.safetensors"
    dates = weights.stat()
    weights.write_bytes(b"two")
    os.utime(weights, ns=(dates.st_atime_ns, dates.st_mtime_ns))  # as a disk does that forgets a bit

    again = Versions(layout)
    again.scan([A], [A])

    assert again.all() == (written,)
    with pytest.raises(CheckpointMismatch, match="damaged"):
        again.files(written)


def test_weights_that_somebody_copied_are_read_and_served(layout: StateLayout) -> None:
    written = Versions(layout).write(record(1), "{}", b"one")
    (Path(written.directory) / "adapter_model.safetensors").write_bytes(b"one")

    versions = Versions(layout)
    versions.scan([A], [A])

    assert versions.all() == (written,)


def test_foreign_and_half_written_directories_are_ignored(layout: StateLayout) -> None:
    versions = Versions(layout)
    kept = publish(versions, record(1), "{}", b"one")
    home = layout.versions / A
    (home / "step_latest").mkdir()
    (home / ".aside-0011").mkdir()
    (layout.versions / "junk").mkdir()

    versions.scan([A], [A])

    assert versions.all() == (kept,)
    assert not (home / ".aside-0011").exists()
    assert (home / "step_latest").exists()
    assert (layout.versions / "junk").exists()


def test_versions_that_a_deletion_left_are_removed_and_those_of_another_base_stay(
    layout: StateLayout,
) -> None:
    versions = Versions(layout)
    publish(versions, record(1), "{}", b"one")
    publish(versions, record(1, B), "{}", b"one")

    versions.scan([], [B])

    assert versions.all() == ()
    assert not layout.version(A, 1).exists()
    assert layout.version(B, 1).exists()


def test_dropping_deletes_one_version_and_dropping_again_is_fine(layout: StateLayout) -> None:
    versions = Versions(layout)
    publish(versions, record(1), "{}", b"one")
    kept = publish(versions, record(2), "{}", b"two")

    versions.drop(A, 1)
    versions.drop(A, 1)

    assert versions.all() == (kept,)
    assert not layout.version(A, 1).exists()
    versions.drop(A, 2)
    assert not (layout.versions / A).exists()


def test_files_are_read_as_they_were_written(layout: StateLayout) -> None:
    versions = Versions(layout)
    publish(versions, record(1), '{"r": 4}', b"weights")

    assert versions.files(versions.find(A, 1)) == ('{"r": 4}', b"weights")
    for adapter, number in ((A, 2), (B, 1)):
        with pytest.raises(VersionNotFound):
            versions.find(adapter, number)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_were_damaged_since_are_not_read(layout: StateLayout, file: str) -> None:
    versions = Versions(layout)
    directory = Path(publish(versions, record(1), "{}", b"weights").directory)
    (directory / file).write_bytes(b"\xff")

    with pytest.raises(CheckpointMismatch, match="version 1"):
        versions.files(versions.find(A, 1))


def test_the_tenants_quota_knows_what_versions_take_also_after_a_restart_and_when_they_go(
    layout: StateLayout,
) -> None:
    quota = DiskQuota()
    versions = Versions(layout, quota)
    for number, adapter in ((1, A), (2, A), (1, B)):
        publish(versions, record(number, adapter), "{}", b"weights")
    assert quota.taken(ME) == 27

    again = DiskQuota()
    found = Versions(layout, again)
    found.scan([A, B], [A, B])
    assert again.taken(ME) == 27

    for each in (versions, found):
        each.drop(A, 1)
        each.drop(A, 1)
    assert (quota.taken(ME), again.taken(ME)) == (18, 18)


def test_what_one_more_version_replaces_is_the_oldest_that_nobody_holds(layout: StateLayout) -> None:
    versions = Versions(layout)
    publish(versions, replace(record(1), held=True), "{}", b"held")
    publish(versions, record(2), "{}", b"oldest")
    publish(versions, record(3), "{}", b"newest")

    assert versions.replaced_bytes(A, keep=2) == len("{}oldest")
    assert versions.replaced_bytes(A, keep=3) == 0
    assert versions.replaced_bytes(B, keep=1) == 0


@pytest.mark.parametrize("held", [True, False])
def test_a_restart_knows_whether_a_version_is_held(layout: StateLayout, held: bool) -> None:
    Versions(layout).write(replace(record(1), held=held), "{}", b"one")

    again = Versions(layout)
    again.scan([A], [A])

    assert [each.held for each in again.all()] == [held]


def test_a_version_of_before_there_were_held_ones_is_not_held(layout: StateLayout) -> None:
    written = Versions(layout).write(record(1), "{}", b"one")
    description = Path(written.directory) / "version.json"
    fields = json.loads(description.read_bytes())
    del fields["held"]
    description.write_text(json.dumps(fields))

    again = Versions(layout)
    again.scan([A], [A])

    assert again.all() == (written,)


def test_weights_that_are_not_finite_are_not_published(layout: StateLayout) -> None:
    with pytest.raises(NotFinite):
        Versions(layout).write(replace(record(1), probe_logprobs=(float("nan"),)), "{}", b"one")

    assert not layout.versions.exists()


def test_a_moved_state_directory_is_served_from_where_it_is_now(layout: StateLayout, tmp_path: Path) -> None:
    Versions(layout).write(record(1), "{}", b"one")
    moved = StateLayout(tmp_path / "moved")
    moved.root.mkdir()
    layout.versions.rename(moved.versions)

    versions = Versions(moved)
    versions.scan([A], [A])

    assert [each.directory for each in versions.all()] == [str(moved.version(A, 1))]


def test_the_probe_is_the_same_every_time_and_within_the_vocabulary() -> None:
    probe = probe_sequence(vocab_size=300, count=16)

    assert probe == probe_sequence(vocab_size=300, count=16)
    assert len(probe) == 16
    assert all(0 <= token < 300 for token in probe)
    assert len(set(probe)) > 8
