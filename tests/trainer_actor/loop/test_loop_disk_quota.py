"""A tenant that has as much on disk as it may: told so, with numbers, and nobody else is."""

from collections.abc import Callable
from pathlib import Path

from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    CheckpointSaved,
    DeleteAdapter,
    DeleteCheckpoint,
    Done,
    DropVersion,
    PublishAdapter,
    SaveCheckpoint,
    VersionRecord,
    VersionWritten,
)
from loractl.tests.trainer_actor.loop.harness import Adapter, Office, create, start, stop

Open = Callable[..., Office]
REFUSED = "disk_quota_exceeded"
MOST_BYTES = 90_000  # four versions, and nothing more
ONE_CHECKPOINT_BYTES = 20_000  # and not two, and none with moments


def publish(adapter: Adapter, *, held: bool = True) -> VersionRecord:
    return adapter.run(PublishAdapter, VersionWritten, held=held).record


def size_bytes(record: VersionRecord) -> int:
    return sum(file.stat().st_size for file in Path(record.directory).glob("adapter_*"))


def fill(adapter: Adapter, has_bytes: int = 0) -> list[VersionRecord]:
    """Publish versions that are held until there is no room for one more."""
    held = [publish(adapter)]
    while has_bytes + (len(held) + 1) * size_bytes(held[0]) <= MOST_BYTES:
        held.append(publish(adapter))
    return held


def test_a_tenant_with_too_many_checkpoint_bytes_is_told_and_trains_on(serve: Open) -> None:
    office = serve(f"quotas.checkpoint_bytes={ONE_CHECKPOINT_BYTES}")
    first, second = create(office, "first"), create(office, "second")
    first.run(SaveCheckpoint, CheckpointSaved, name="one")

    refused = second.refused(SaveCheckpoint, name="one")

    assert refused.code == REFUSED
    assert "quotas.checkpoint_bytes" in refused.message
    second.forward_backward(1)
    assert second.step().applied
    office.ask(DeleteCheckpoint(adapter=first.id, name="one"), Done)
    assert second.refused(SaveCheckpoint, name="one").code == REFUSED, "with its moments it is larger"


def test_versions_that_nobody_counts_otherwise_fill_a_tenants_quota_and_nobody_elses(serve: Open) -> None:
    office = serve(f"quotas.checkpoint_bytes={MOST_BYTES}")
    adapter, other = create(office, "mine"), create(office, "theirs", tenant=TenantId("other"))
    held = fill(adapter)

    refused = adapter.refused(PublishAdapter, held=True)

    assert refused.code == REFUSED
    assert f"take {sum(map(size_bytes, held)):,} of at most {MOST_BYTES:,} bytes" in refused.message
    assert "delete checkpoints or sampler weights" in refused.message
    assert adapter.refused(SaveCheckpoint, name="one").code == REFUSED
    assert publish(other).number == 1
    office.tell(DropVersion(adapter=adapter.id, version=held[0].number))
    assert publish(adapter).number == held[-1].number + 1, "no number was used up"


def test_what_a_tenant_has_on_disk_is_known_after_a_restart(open_office: Open) -> None:
    office = open_office(f"quotas.checkpoint_bytes={MOST_BYTES}", "journal.enabled=false")
    trainer, _ = start(office)
    adapter = create(office, "mine")
    held = fill(adapter)
    stop(office, trainer)
    trainer, _ = start(office)
    adapter.reopen()

    assert adapter.refused(PublishAdapter, held=True).code == REFUSED
    office.tell(DropVersion(adapter=adapter.id, version=held[0].number))
    assert publish(adapter).held
    stop(office, trainer)


def test_a_version_that_takes_the_place_of_one_that_goes_needs_no_room_of_its_own(serve: Open) -> None:
    office = serve(f"quotas.checkpoint_bytes={MOST_BYTES}", "publish.keep_versions=1")
    adapter = create(office, "mine")
    passing = publish(adapter, held=False)
    held = fill(adapter, size_bytes(passing))

    assert adapter.refused(PublishAdapter, held=True).code == REFUSED
    assert publish(adapter, held=False).number == held[-1].number + 1


def test_the_checkpoints_of_a_deleted_adapter_count_no_more(serve: Open) -> None:
    office = serve(f"quotas.checkpoint_bytes={ONE_CHECKPOINT_BYTES}")
    first, second = create(office, "first"), create(office, "second")
    first.run(SaveCheckpoint, CheckpointSaved, name="one")
    assert second.refused(SaveCheckpoint, name="one").code == REFUSED

    office.ask(DeleteAdapter(adapter=first.id), Done)

    assert second.run(SaveCheckpoint, CheckpointSaved, name="one").step == 0
    assert second.run(SaveCheckpoint, CheckpointSaved, name="one", overwrite=True).step == 0
