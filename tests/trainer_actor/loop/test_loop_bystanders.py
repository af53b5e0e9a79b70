"""What goes wrong with one adapter of a turn is told to that one; after a bug, whoever waits is still answered."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from loractl.bus.ids import RequestId
from loractl.bus.messages import AdapterList, Failed, ListAdapters, OptimStep, PassResult, StepResult
from loractl.tests.trainer_actor.loop.harness import (
    WAIT_S,
    Adapter,
    Office,
    checked,
    create,
    pass_over,
    start,
    stop,
)
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.part_run import PartRun
from loractl.trainer_actor.passes import AdamParams, StepOutcome

OpenOffice = Callable[..., Office]


class GatedEngine(TrainEngine):
    """A pass over data while `shut` waits until it is `opened`, so that what comes meanwhile shares the next
    turn. With `bug` an optim_step fails as no optim_step may."""

    shut = False
    bug = False
    entered = threading.Event()
    opened = threading.Event()

    def run(self, runs: Sequence[PartRun]) -> None:
        if GatedEngine.shut:
            GatedEngine.shut = False
            self.entered.set()
            assert self.opened.wait(WAIT_S)
        super().run(runs)

    def optim_steps(self, steps: Sequence[tuple[int, AdamParams]]) -> list[StepOutcome | Exception]:  # type: ignore[override]
        if GatedEngine.bug:
            raise RuntimeError("a bug")
        return [*super().optim_steps(steps)]


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    GatedEngine.entered.clear()
    GatedEngine.opened.clear()
    yield
    GatedEngine.shut = GatedEngine.bug = False


def on_disk(office: Office, *adapters: Adapter) -> bool:
    """Whether they are at one of many looks, each a round trip to the trainer."""
    names = {adapter.details.name for adapter in adapters}
    for _ in range(5000):
        listed = office.ask(ListAdapters(), AdapterList).adapters
        if all(each.place == "disk" for each in listed if each.name in names):
            return True
    return False


def hold_the_trainer(office: Office, adapter: Adapter) -> None:
    """Have it busy with a pass until `opened`."""
    GatedEngine.shut = True
    office.send(pass_over(1, **adapter.next(), forward_only=True))
    assert GatedEngine.entered.wait(WAIT_S)


def step(office: Office, adapter: Adapter) -> RequestId:
    return office.send(OptimStep(learning_rate=0.1, **adapter.next()))  # type: ignore[arg-type]


def test_an_adapter_whose_state_is_damaged_fails_alone_among_those_that_step_with_it(
    open_office: OpenOffice,
) -> None:
    office = open_office("trainer.slots=3", "trainer.sink_after_s=0.01")
    trainer, _ = start(office, GatedEngine)
    damaged, sound, busy = (create(office, name) for name in ("damaged", "sound", "busy"))
    for adapter in (damaged, sound):
        adapter.forward_backward(1)
    assert on_disk(office, damaged, sound)
    file = office.layout.spill / f"{damaged.id}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    hold_the_trainer(office, busy)

    steps = [step(office, adapter) for adapter in (damaged, sound)]
    passes = [office.send(pass_over(2, **adapter.next())) for adapter in (damaged, sound)]
    GatedEngine.opened.set()

    failed, stepped = (office.wait(request) for request in steps)
    assert isinstance(failed, Failed)
    assert (failed.code, "load a checkpoint" in failed.message) == ("storage_failed", True)
    assert checked(stepped, StepResult).tokens == 12
    assert isinstance(office.wait(passes[0]), Failed)
    assert checked(office.wait(passes[1]), PassResult).logprobs.shape == (12,)
    stop(office, trainer)


def test_after_a_bug_in_a_turns_first_steps_all_that_it_held_is_answered(open_office: OpenOffice) -> None:
    office = open_office("trainer.slots=3", "trainer.gather_s=0")
    trainer, _ = start(office, GatedEngine)
    adapter, busy = create(office, "poet"), create(office, "busy")
    adapter.forward_backward(1)
    hold_the_trainer(office, busy)

    waiting = [step(office, adapter), step(office, adapter), office.send(pass_over(2, **adapter.next()))]
    GatedEngine.bug = True
    GatedEngine.opened.set()

    codes = [answer.code for answer in map(office.wait, waiting) if isinstance(answer, Failed)]
    assert codes == ["internal", "actor_restarting", "actor_restarting"]
    assert trainer.join() == 1


def test_adapters_with_windows_of_their_own_are_told_that_they_take_turns(open_office: OpenOffice) -> None:
    office = open_office("trainer.window=exclusive", "trainer.slots=3")
    trainer, _ = start(office, GatedEngine)
    first, second, busy = (create(office, name) for name in ("first", "second", "busy"))
    hold_the_trainer(office, busy)

    waiting = [office.send(pass_over(2, **adapter.next())) for adapter in (first, second)]
    GatedEngine.opened.set()

    assert office.wait_for_notice(waiting[1]) == "takes turns with another adapter"
    checked(office.wait(waiting[0]), PassResult)
    step(office, first)
    checked(office.wait(waiting[1]), PassResult)
    stop(office, trainer)
