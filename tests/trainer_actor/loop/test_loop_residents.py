"""Memory is given back when something fails on the way in."""

from collections.abc import Callable

import pytest
from loractl.bus.errors import OutOfSlots, StorageFailed
from loractl.bus.ids import AdapterId
from loractl.bus.messages import CreateAdapter, LoraSpec
from loractl.tests.trainer_actor.loop.harness import Office, create
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.budgets import Budgets
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.resident import Residents
from loractl.trainer_actor.spill import SpillStore

LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
A, B, C = (AdapterId(name) for name in "abc")


def unreadable() -> HostState | None:
    raise StorageFailed("as if")


def test_an_adapter_whose_state_cannot_be_read_takes_no_memory(open_office: Callable[..., Office]) -> None:
    office = open_office("trainer.slots=1")
    engine = TrainEngine.build(office.config)
    size = engine.state_bytes(LORA)
    budgets = Budgets(slots=1, device_bytes=1 << 30, host_bytes=2 * size, disk_bytes=0)
    residents = Residents(engine, budgets, SpillStore(office.layout.spill))
    for adapter in (A, B):
        residents.admit(adapter, LORA)
    residents.place(A)

    for _ in range(3):
        with pytest.raises(StorageFailed):
            residents.admit(C, LORA, unreadable)
    assert not residents.admitted(C)

    residents.replace(B, engine.copy_out(residents.place(A)))
    engine.row(0).changed.add("main")  # as a step does
    with pytest.raises(OutOfSlots, match="2 adapters have"):
        residents.admit(C, LORA, unreadable)


def test_a_creation_that_the_disk_refuses_takes_neither_name_nor_memory(serve: Callable[..., Office]) -> None:
    office = serve("trainer.slots=1", f"trainer.host_bytes={2 * 131072}")
    create(office, "first")
    adapters, kept = office.layout.adapters, office.layout.root / "kept"
    adapters.rename(kept)
    adapters.write_text("a file where the directory should be")

    for _ in range(3):
        assert office.refused(CreateAdapter(name="second", lora=LORA)).code == "storage_failed"
    adapters.unlink()
    kept.rename(adapters)

    create(office, "second").forward_backward(1)
    assert not [path for path in adapters.iterdir() if not (path / "adapter.json").exists()]
