"""What the disk takes its time for holds up nobody but the adapter that asked for it."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    Done,
    Drain,
    Failed,
    LaneOpened,
    LanePosition,
    ListAdapters,
    LoadCheckpoint,
    LoraSpec,
    OpenLane,
    OptimStep,
    PassResult,
    RecoverAdapter,
    Recovered,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    UnloadAdapter,
)
from loractl.tests.trainer_actor.loop.harness import (
    WAIT_S,
    Adapter,
    Office,
    Trainer,
    checked,
    create,
    pass_over,
    same,
    start,
    stop,
)
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.engine import TrainEngine
from torch import Tensor


@dataclass
class Gate:
    """Where a checkpoint's tensors wait on their way to the disk."""

    shut: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def open(self) -> None:
        self.shut = False
        self.opened.set()


GATE = Gate()


class GatedEngine(TrainEngine):
    def checkpoint_tensors(self, state: HostState) -> tuple[dict[str, Tensor], dict[str, str]]:
        if GATE.shut:
            GATE.reached.set()
            assert GATE.opened.wait(WAIT_S)
        return super().checkpoint_tensors(state)


@dataclass
class Stage:
    office: Office
    trainer: Trainer
    saver: Adapter
    neighbour: Adapter

    def save(self, name: str = "at-one") -> object:
        """Send a save and wait until it has reached the disk."""
        GATE.shut = True
        request = self.office.send(SaveCheckpoint(name=name, **self.saver.next()))  # type: ignore[arg-type]
        assert GATE.reached.wait(WAIT_S)
        return request

    def snapshot_of_neighbour(self) -> None:
        """Let one be begun, behind whatever the disk is at."""
        self.neighbour.forward_backward(1)
        self.office.ask(ListAdapters(), AdapterList)  # the loop has been round since

    def others_train(self) -> None:
        create(self.office, "third").forward_backward(1)


@pytest.fixture
def stage(open_office: Callable[..., Office]) -> Iterator[Stage]:
    GATE.__init__()  # type: ignore[misc]
    office = open_office("journal.snapshot_bytes=1")  # every operation that has data makes its adapter due
    trainer, _ = start(office, GatedEngine)
    saver, neighbour = create(office, "saver"), create(office, "neighbour")
    saver.forward_backward(1)
    saver.step()
    yield Stage(office, trainer, saver, neighbour)
    GATE.open()
    if trainer.status is None:
        stop(office, trainer)


def test_neighbours_train_on_while_a_checkpoint_is_written(stage: Stage) -> None:
    saving = stage.save()

    for data in range(3):
        stage.neighbour.forward_backward(data)
        assert stage.neighbour.step().applied

    [listed] = stage.office.ask(ListAdapters(name="saver"), AdapterList).adapters
    assert (listed.queued, listed.waits_for) == (1, "its save_checkpoint is on its way to or from the disk")
    assert saving not in stage.office.arrived
    GATE.open()
    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]


def test_the_time_that_a_save_keeps_the_disk_is_told_of_whoever_saves(stage: Stage) -> None:
    saving = stage.save()
    begin = time.perf_counter()
    stage.neighbour.forward_backward(1)
    waited_ms = (time.perf_counter() - begin) * 1000
    GATE.open()
    checked(stage.office.wait(saving), CheckpointSaved)  # type: ignore[arg-type]

    listed = stage.office.ask(ListAdapters(), AdapterList)

    disk_ms = {each.name: each.usage.disk_ms for each in listed.adapters}
    assert disk_ms["neighbour"] == 0.0
    assert disk_ms["saver"] == listed.usage.disk_ms >= waited_ms


def test_what_comes_behind_a_save_waits_for_it_and_is_not_in_it(stage: Stage) -> None:
    saving = stage.save()
    passing = stage.office.send(pass_over(2, **stage.saver.next()))
    stepping = stage.office.send(OptimStep(learning_rate=0.1, **stage.saver.next()))  # type: ignore[arg-type]
    stage.neighbour.forward_backward(7)
    assert not {passing, stepping} & {*stage.office.arrived}
    GATE.open()

    saved = checked(stage.office.wait(saving), CheckpointSaved)  # type: ignore[arg-type]
    before = checked(stage.office.wait(passing), PassResult).logprobs
    assert checked(stage.office.wait(stepping), StepResult).step == 2
    loaded = stage.saver.run(LoadCheckpoint, StateLoaded, source=stage.saver.id, name="at-one")
    assert (saved.step, loaded.step) == (1, 1)
    assert same([stage.saver.forward_backward(2).logprobs], [before])


def test_a_second_save_waits_for_the_disk_and_lets_others_pass(stage: Stage) -> None:
    first = stage.save()
    second = stage.office.send(SaveCheckpoint(name="mine", **stage.neighbour.next()))  # type: ignore[arg-type]
    third = create(stage.office, "third")
    third.forward_backward(1)
    assert second not in stage.office.arrived
    GATE.open()

    assert checked(stage.office.wait(first), CheckpointSaved).name == "at-one"  # type: ignore[arg-type]
    assert checked(stage.office.wait(second), CheckpointSaved).name == "mine"


def test_deleting_an_adapter_lets_its_save_end_first(stage: Stage) -> None:
    saving = stage.save()
    deleting = stage.office.send(DeleteAdapter(adapter=stage.saver.id))
    GATE.open()

    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]
    assert checked(stage.office.wait(deleting), Done) == Done()
    assert not stage.office.layout.adapter(stage.saver.id).exists()


def test_the_name_of_who_is_being_deleted_is_free_for_whoever_asks_afterwards(stage: Stage) -> None:
    saving = stage.save()
    deleting = stage.office.send(DeleteAdapter(adapter=stage.saver.id))
    lora = LoraSpec(rank=4, alpha=8.0, seed=1)
    again = stage.office.send(CreateAdapter(name="saver", lora=lora))
    other = create(stage.office, "fourth")

    GATE.open()

    checked(stage.office.wait(deleting), Done)
    created = checked(stage.office.wait(again), AdapterCreated)
    assert created.details.adapter not in {stage.saver.id, other.id}
    assert saving in stage.office.arrived


def test_nobody_waits_with_whoever_waits_to_delete_what_is_being_saved(stage: Stage) -> None:
    saving = stage.save()
    deleting = stage.office.send(DeleteAdapter(adapter=stage.saver.id))
    behind = stage.office.send(pass_over(2, **stage.saver.next()))
    dropping = stage.office.send(DeleteCheckpoint(adapter=stage.saver.id, name="at-one"))

    stage.others_train()
    assert not {saving, deleting, behind, dropping} & {*stage.office.arrived}
    GATE.open()

    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]
    assert checked(stage.office.wait(deleting), Done) == Done()
    assert [getattr(stage.office.wait(each), "code", "") for each in (behind, dropping)] == [
        "aborted",
        "adapter_not_found",
    ]


def test_a_checkpoint_is_deleted_once_the_save_before_it_has_ended(stage: Stage) -> None:
    saving = stage.save()
    dropping = stage.office.send(DeleteCheckpoint(adapter=stage.saver.id, name="at-one"))

    stage.others_train()
    assert dropping not in stage.office.arrived
    GATE.open()

    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]
    assert checked(stage.office.wait(dropping), Done) == Done()
    assert stage.saver.refused(LoadCheckpoint, source=stage.saver.id, name="at-one").code == (
        "checkpoint_not_found"
    )


def test_a_lane_is_opened_while_snapshots_are_written(stage: Stage) -> None:
    stage.save()
    stage.snapshot_of_neighbour()

    stage.neighbour.reopen()
    stage.neighbour.forward_backward(2)


def test_a_lane_of_who_leaves_is_opened_once_it_has_left_and_nobody_else_waits(stage: Stage) -> None:
    stage.snapshot_of_neighbour()
    stage.save()
    leaving = stage.office.send(UnloadAdapter(adapter=stage.neighbour.id))
    opening = stage.office.send(OpenLane(adapter=stage.neighbour.id))

    stage.others_train()
    assert not {leaving, opening} & {*stage.office.arrived}
    GATE.open()

    assert checked(stage.office.wait(leaving), Done) == Done()
    stage.neighbour.lane = checked(stage.office.wait(opening), LaneOpened).lane
    stage.neighbour.seq = 0
    stage.neighbour.forward_backward(2)
    assert stage.neighbour.step().applied


@pytest.mark.parametrize("ending", [DeleteAdapter, UnloadAdapter])
def test_who_ends_waits_for_a_snapshot_and_does_nothing_meanwhile(
    stage: Stage, ending: type[DeleteAdapter | UnloadAdapter]
) -> None:
    stage.save()
    stage.snapshot_of_neighbour()
    asked = stage.office.send(ending(adapter=stage.neighbour.id))
    behind = stage.office.send(pass_over(2, **stage.neighbour.next()))

    stage.others_train()
    assert not {asked, behind} & {*stage.office.arrived}
    GATE.open()

    assert checked(stage.office.wait(asked), Done) == Done()
    assert getattr(stage.office.wait(behind), "code", "") == "aborted"


def test_an_adapter_that_is_brought_back_waits_for_its_snapshot_and_nobody_with_it(stage: Stage) -> None:
    stage.save()
    stage.snapshot_of_neighbour()
    lanes = (LanePosition(lane=stage.neighbour.lane, next_seq=1),)
    recovering = stage.office.send(RecoverAdapter(adapter=stage.neighbour.id, snapshot="", lanes=lanes))

    stage.others_train()
    assert recovering not in stage.office.arrived
    GATE.open()

    assert checked(stage.office.wait(recovering), Recovered).step == 0
    stage.neighbour.seq = 0
    stage.neighbour.forward_backward(1)


def test_who_may_not_end_an_adapter_is_told_at_once_and_holds_nothing_up(stage: Stage) -> None:
    saving = stage.save()
    stranger = TenantId("stranger")

    refused = [
        stage.office.refused(body, stranger).code
        for body in (
            DeleteAdapter(adapter=stage.saver.id),
            UnloadAdapter(adapter=stage.saver.id),
            OpenLane(adapter=stage.saver.id),
            DeleteCheckpoint(adapter=stage.saver.id, name="at-one"),
        )
    ]

    assert refused == ["adapter_not_found"] * 4
    assert saving not in stage.office.arrived


def test_a_stop_answers_what_waits_for_the_disk(stage: Stage) -> None:
    saving = stage.save()
    deleting = stage.office.send(DeleteAdapter(adapter=stage.saver.id))
    stage.others_train()
    stage.office.tell(Drain())
    GATE.open()

    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]
    assert isinstance(stage.office.wait(deleting), Done | Failed)  # Done: the save ended before the stop came
    assert stage.trainer.join() == 0


def test_a_stop_lets_a_save_end_and_says_so(stage: Stage) -> None:
    saving = stage.save()
    stage.office.tell(Drain())
    GATE.open()

    assert checked(stage.office.wait(saving), CheckpointSaved).step == 1  # type: ignore[arg-type]
    assert stage.trainer.join() == 0
