"""Stopping, bugs, disks that refuse: nobody is left without an answer, nothing is left half done."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from loractl.bus.errors import StorageFailed
from loractl.bus.messages import (
    Drain,
    Failed,
    OptimStep,
    PassResult,
    PublishAdapter,
    SaveCheckpoint,
)
from loractl.tests.trainer_actor.loop.harness import (
    WAIT_S,
    Office,
    checked,
    create,
    pass_over,
    same,
    start,
    stop,
)
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.part_run import PartRun

OpenOffice = Callable[..., Office]


class BrittleEngine(TrainEngine):
    """Raises `trouble` once, at the call that `at` names."""

    at: str = ""
    trouble: Exception

    def run(self, runs: Sequence[PartRun]) -> None:
        self._trip("run")
        super().run(runs)

    def peft_files(self, slot: int) -> tuple[str, bytes, int]:
        self._trip("peft_files")
        return super().peft_files(slot)

    def _trip(self, call: str) -> None:
        if BrittleEngine.at == call:
            BrittleEngine.at = ""
            raise BrittleEngine.trouble


class HeldEngine(TrainEngine):
    """Stays inside a pass until it is released."""

    entered = threading.Event()
    released = threading.Event()

    def run(self, runs: Sequence[PartRun]) -> None:
        self.entered.set()
        assert self.released.wait(WAIT_S)
        super().run(runs)


@pytest.fixture
def trip() -> Iterator[Callable[[str, Exception], None]]:
    def arm(at: str, trouble: Exception) -> None:
        BrittleEngine.trouble = trouble
        BrittleEngine.at = at

    yield arm
    BrittleEngine.at = ""


def test_a_drain_finishes_what_runs_and_answers_all_that_waits(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office, HeldEngine)
    adapter, other = create(office, "poet"), create(office, "other")
    running = office.send(pass_over(1, **adapter.next()))
    assert HeldEngine.entered.wait(WAIT_S)
    other.next()
    waiting = [office.send(pass_over(data, **other.next())) for data in range(3)]  # behind a gap
    office.tell(Drain())
    HeldEngine.released.set()

    ran = checked(office.wait(running), PassResult)
    answers = [office.wait(request) for request in waiting]

    assert ran.logprobs.shape == (12,)
    assert [answer.code for answer in answers if isinstance(answer, Failed)] == ["actor_stopping"] * 3
    assert all(answer.retryable for answer in answers if isinstance(answer, Failed))
    assert trainer.join() == 0


@pytest.mark.parametrize("at", ["run", "peft_files"])
def test_a_bug_is_answered_the_others_are_told_and_their_steps_are_kept(
    open_office: OpenOffice, trip: Callable[[str, Exception], None], at: str
) -> None:
    office = open_office()
    trainer, _ = start(office, BrittleEngine)
    victim, bystander, waiting = (create(office, name) for name in ("victim", "bystander", "waiting"))
    bystander.forward_backward(1)
    bystander.step()
    bystander.forward_backward(2, forward_only=True)
    waiting.next()
    held = office.send(pass_over(1, **waiting.next()))

    trip(at, RuntimeError("a bug"))
    operation = pass_over(1, **victim.next()) if at == "run" else PublishAdapter(**victim.next())
    crashed = office.refused(operation)

    assert crashed.code == "internal"
    assert "a bug" not in crashed.message
    assert office.wait(held).code == "actor_restarting"  # type: ignore[attr-defined]
    assert trainer.join() == 1

    trainer, _ = start(office)
    bystander.reopen()
    assert bystander.details.step == 1
    bystander.forward_backward(2, forward_only=True)
    assert same(bystander.results[1:2], bystander.results[2:])
    victim.reopen()
    victim.forward_backward(1)
    stop(office, trainer)


def test_an_error_on_purpose_is_the_askers_alone_and_the_loop_lives(
    open_office: OpenOffice, trip: Callable[[str, Exception], None]
) -> None:
    office = open_office()
    trainer, _ = start(office, BrittleEngine)
    adapter = create(office, "poet")

    trip("peft_files", StorageFailed("the disk is full"))

    assert adapter.refused(PublishAdapter).code == "storage_failed"
    assert office.ask(pass_over(1, **adapter.next()), PassResult).logprobs.shape == (12,)
    stop(office, trainer)


def test_a_disk_that_refuses_leaves_adapter_and_window_as_they_were(open_office: OpenOffice) -> None:
    office = open_office()
    trainer, _ = start(office)
    adapter = create(office, "poet")
    adapter.forward_backward(1)
    checkpoints = office.layout.adapter(adapter.id) / "checkpoints"
    checkpoints.write_text("a file where the directory should be")
    office.layout.versions.write_text("and here")

    assert adapter.refused(SaveCheckpoint, name="one").code == "storage_failed"
    assert adapter.refused(PublishAdapter).code == "storage_failed"

    step = office.send(OptimStep(learning_rate=0.1, **adapter.next()))
    assert office.wait(step).tokens == 12  # type: ignore[attr-defined]
    checkpoints.unlink()
    office.layout.versions.unlink()
    stop(office, trainer)
