"""Too little memory, disks that refuse, idle adapters: no state is lost, and what failed takes no memory."""

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from loractl.bus.errors import OutOfSlots, StorageFailed
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import AdapterList, CreateAdapter, ListAdapters, LoraSpec
from loractl.tests.trainer_actor.compute_lab import state_in
from loractl.tests.trainer_actor.loop.harness import Adapter, Office, create, pass_over, same
from loractl.trainer_actor.adapters import Adapters
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
    residents = Residents(engine.bank, budgets, SpillStore(office.layout.spill))
    for adapter in (A, B):
        residents.admit(adapter, LORA)
    residents.place(A)

    for _ in range(3):
        with pytest.raises(StorageFailed):
            residents.admit(C, LORA, unreadable)
    assert not residents.admitted(C)

    residents.replace(B, state_in(engine, residents.place(A)))
    engine.bank.row(0).changed.add("main")  # as a step does
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


STATE_BYTES = 131072


def crowd(office: Office, count: int) -> tuple[list[Adapter], list[np.ndarray]]:
    """Adapters, each trained for a step of its own, and what a pass of each says then."""
    adapters = [create(office, f"number-{number}") for number in range(count)]
    for number, adapter in enumerate(adapters):
        adapter.forward_backward(number)
        adapter.step()
    return adapters, [score(adapter) for adapter in adapters]


def score(adapter: Adapter) -> np.ndarray:
    adapter.forward_backward(9, forward_only=True)
    return adapter.results.pop()


def test_adapters_that_fit_nowhere_together_take_turns_over_the_disk(serve: Callable[..., Office]) -> None:
    office = serve("trainer.slots=1", f"trainer.host_bytes={STATE_BYTES}")

    adapters, expected = crowd(office, 4)

    assert same([score(adapter) for adapter in adapters], expected)
    assert len(list(office.layout.spill.iterdir())) >= 2


def test_a_disk_that_takes_no_state_refuses_the_swap_and_nothing_is_lost(
    serve: Callable[..., Office],
) -> None:
    office = serve("trainer.slots=1", f"trainer.host_bytes={STATE_BYTES}")
    (first, second), expected = crowd(office, 2)
    kept = office.layout.spill.rename(office.layout.root / "kept")
    office.layout.spill.write_text("a file where the directory should be")

    for adapter in (first, second):
        office.wait(office.send(pass_over(5, **adapter.next())))
    office.layout.spill.unlink()
    kept.rename(office.layout.spill)

    assert same([score(adapter) for adapter in (first, second)], expected)


def adapter_place(office: Office, adapter: Adapter) -> str:
    [details] = office.ask(ListAdapters(name=adapter.details.name), AdapterList).adapters
    return details.place


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds at one of many looks, each a round trip to the trainer."""
    return any(holds() for _ in range(5000))


def test_an_idle_adapter_sinks_with_its_gradients_and_comes_back_with_them(
    serve: Callable[..., Office],
) -> None:
    office = serve("trainer.sink_after_s=0.01")
    adapter, twin = create(office, "idle"), create(office, "twin")
    for each in (adapter, twin):
        each.forward_backward(1)
    assert eventually(lambda: adapter_place(office, adapter) == "disk")

    steps = [each.step() for each in (adapter, twin)]

    assert [step.tokens for step in steps] == [12, 12]


def test_an_idle_adapter_sinks_while_others_never_let_the_trainer_rest(serve: Callable[..., Office]) -> None:
    office = serve("trainer.sink_after_s=0.05")
    idle, busy = create(office, "idle"), create(office, "busy")
    idle.forward_backward(1)
    file = office.layout.spill / f"{idle.id}.safetensors"

    sent = deque(office.send(pass_over(1, **busy.next(), forward_only=True)) for _ in range(50))
    for _ in range(1000):
        if file.exists():
            break
        sent.append(office.send(pass_over(1, **busy.next(), forward_only=True)))
        office.wait(sent.popleft())

    assert file.exists()
    assert len(sent) == 50
    assert idle.step().tokens == 12


def test_between_turns_one_adapter_sinks_at_a_time_and_none_that_has_work(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("trainer.sink_after_s=10")
    adapters = Adapters.open(office.config, office.layout, TrainEngine.build(office.config))
    both = [adapters.create(LOCAL_TENANT, name, LORA).id for name in ("first", "second")]
    adapters.residents.place_all(both)

    assert adapters.sink_one(0.0, lambda _: False) == 0
    assert adapters.sink_one(10.0, lambda _: True) == 0
    assert [adapters.residents.on_device(each) for each in both] == [True, True]
    assert adapters.sink_one(20.0, lambda _: False) > 0
    assert sum(map(adapters.residents.on_device, both)) == 1
    assert adapters.sink_one(20.0, lambda _: False) > 0
    assert adapters.sink_one(20.0, lambda _: False) == 0
