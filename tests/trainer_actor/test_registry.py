"""The adapters that exist, and what survives a restart."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.errors import AdapterExists, AdapterNotFound, AnotherBase, InvalidName, StorageFailed
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.registry import AdapterRecord, Registry, open_registry

ME, OTHER = TenantId("me"), TenantId("other")
BASE = "tiny 0123"
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path)


def created(registry: Registry, name: str, tenant: TenantId = ME) -> AdapterRecord:
    record = registry.draft(tenant, name, LORA, now_unix_s=1.5)
    registry.add(record)
    return record


def test_an_adapter_is_there_after_a_restart(layout: StateLayout) -> None:
    record = created(open_registry(layout, BASE), "poet")

    again = open_registry(layout, BASE)

    assert again.owned(ME, record.adapter) == record
    assert again.of(ME, "poet") == [record]


def test_a_name_is_used_once_per_tenant(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    created(registry, "poet")

    with pytest.raises(AdapterExists):
        registry.draft(ME, "poet", LORA, now_unix_s=2.0)

    assert created(registry, "poet", OTHER).name == "poet"


def test_another_tenants_adapter_answers_as_one_that_does_not_exist(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    theirs = created(registry, "poet", OTHER).adapter
    none = AdapterId("ad-" + "0" * 32)

    def told(adapter: AdapterId) -> str:
        with pytest.raises(AdapterNotFound) as caught:
            registry.owned(ME, adapter)
        return caught.value.message.replace(adapter, "<id>")

    assert told(theirs) == told(none)
    assert registry.of(ME) == []
    with pytest.raises(AdapterNotFound):
        registry.of(ME, "poet")


def test_version_numbers_are_never_used_again_even_after_a_crash(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    adapter = created(registry, "poet").adapter

    first = registry.begin_version(adapter)
    second = open_registry(layout, BASE).begin_version(adapter)

    assert (first, second) == (1, 2)


def test_a_removed_adapter_is_gone_and_its_name_free(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    adapter = created(registry, "poet").adapter

    registry.remove(adapter)

    assert not layout.adapter(adapter).exists()
    assert created(registry, "poet").adapter != adapter
    with pytest.raises(AdapterNotFound):
        open_registry(layout, BASE).owned(ME, adapter)


def test_junk_among_the_adapters_is_left_alone_and_half_made_ones_are_removed(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    record = created(registry, "poet")
    (layout.adapters / "step_latest").mkdir()
    (layout.adapters / "notes.txt").write_text("mine")
    (layout.adapters / "broken").mkdir()
    (layout.adapters / "broken" / "adapter.json").write_text("{")
    half = layout.adapters / ("ad-" + "1" * 32)
    half.mkdir()
    moved = layout.adapters / ("ad-" + "2" * 32)
    moved.mkdir()
    (moved / "adapter.json").write_bytes(msgspec.json.encode(record))

    again = open_registry(layout, BASE)

    assert again.all() == [record]
    assert {path.name for path in layout.adapters.iterdir()} == {
        record.adapter,
        "step_latest",
        "notes.txt",
        "broken",
        moved.name,
    }


def test_adapters_of_another_base_model_wait_untouched(layout: StateLayout) -> None:
    record = created(open_registry(layout, BASE), "poet")

    other = open_registry(layout, "another 4567")

    assert other.all() == []
    assert other.elsewhere() == {ME: ["poet"]}
    assert open_registry(layout, BASE).all() == [record]


def test_whoever_asks_for_an_adapter_of_another_base_hears_where_it_is_and_nobody_else_does(
    layout: StateLayout,
) -> None:
    record = created(open_registry(layout, BASE), "poet")

    other = open_registry(layout, "another 4567")

    for refused in (
        lambda: other.owned(ME, record.adapter),
        lambda: other.check_apart(record.adapter),
        lambda: other.draft(ME, "new", LORA, now_unix_s=2.0, adapter=record.adapter),
    ):
        with pytest.raises(AnotherBase, match="start the daemon with the model that it had"):
            refused()
    with pytest.raises(AdapterNotFound):
        other.owned(OTHER, record.adapter)


def test_an_adapter_that_cannot_be_read_is_not_taken_for_one_that_is_gone(layout: StateLayout) -> None:
    record = created(open_registry(layout, BASE), "poet")
    (layout.adapter(record.adapter) / "adapter.json").write_text("{")

    with pytest.raises(AnotherBase, match=r"adapter\.json cannot be read"):
        open_registry(layout, BASE).owned(ME, record.adapter)


def test_an_adapter_that_cannot_be_written_does_not_exist(layout: StateLayout) -> None:
    registry = open_registry(layout, BASE)
    layout.adapters.rmdir()
    layout.adapters.write_text("a file where the directory should be")

    with pytest.raises(StorageFailed):
        created(registry, "poet")

    assert registry.of(ME) == []


@given(st.text(max_size=200))
def test_names_never_become_paths(name: str) -> None:
    registry = Registry(StateLayout(Path("/nowhere")), BASE)

    try:
        record = registry.draft(ME, name, LORA, now_unix_s=0.0)
    except InvalidName:
        return

    assert record.adapter.removeprefix("ad-").isalnum()
    assert "/" not in name
    assert ".." not in name
