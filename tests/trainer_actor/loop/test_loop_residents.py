"""Memory is given back when something fails on the way in."""

from collections.abc import Callable

import pytest
from loractl.bus.errors import OutOfSlots, StorageFailed
from loractl.bus.ids import AdapterId
from loractl.bus.messages import CreateAdapter, LoraSpec
from loractl.tests.trainer_actor.loop.harness import Office, create
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.resident import Residents
from loractl.trainer_actor.slot_table import SlotTable

LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
A, B, C = (AdapterId(name) for name in "abc")


def unreadable() -> HostState | None:
    raise StorageFailed("as if")


def test_an_adapter_whose_state_cannot_be_read_takes_no_memory(open_office: Callable[..., Office]) -> None:
    engine = TrainEngine.build(open_office("trainer.slots=1").config)
    size = engine.state_bytes(LORA)
    residents = Residents(engine, SlotTable(slots=1, host_bytes=2 * size))
    residents.admit(A, LORA, lambda: None)

    for _ in range(3):
        with pytest.raises(StorageFailed):
            residents.admit(B, LORA, unreadable)
    assert not residents.admitted(B)

    residents.admit(B, LORA, lambda: None)
    with pytest.raises(OutOfSlots):
        residents.admit(C, LORA, unreadable)


def test_states_move_between_slot_and_host_without_a_change(open_office: Callable[..., Office]) -> None:
    engine = TrainEngine.build(open_office("trainer.slots=1").config)
    residents = Residents(engine, SlotTable(slots=1, host_bytes=1 << 30))
    for adapter in (A, B):
        residents.admit(adapter, LORA, lambda: None)
    residents.place(A)
    before = residents.state(A)

    residents.place(B)
    residents.place(A)
    residents.replace(A, residents.state(A))
    residents.place(A)

    after = residents.state(A)
    assert after.main.equal(before.main)
    assert (after.lora, after.step, after.gradients) == (before.lora, before.step, before.gradients)


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
