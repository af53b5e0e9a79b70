"""Training runs: every step on its own batch, whatever fails, restarts or is interrupted in between.

`FakeAdapter` does what the trainer promises: operations in order, one failed operation changes
nothing, later ones run all the same, and a restart brings the newest checkpoint back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from loractl.bus.errors import (
    Aborted,
    AdapterNotFound,
    LaneLost,
    LoractlError,
    NotFinite,
    PublishFailed,
    SequenceConflict,
)
from loractl.bus.ids import LOCAL_TENANT, AdapterId
from loractl.bus.messages import (
    AdapterDetails,
    CheckpointSaved,
    LoraSpec,
    PassResult,
    Receipt,
    StateLoaded,
    StepResult,
    VersionRecord,
)
from loractl.client.datums import Packed, supervised_datum
from loractl.client.run_plan import RunSettings, plan_run
from loractl.client.training import (
    Published,
    Saved,
    StepDone,
    Stopped,
    TrainerRestarted,
    TrainingRun,
    WentBack,
)

DATUMS = [supervised_datum([i, i + 100], [True, True]) for i in range(10)]
LORA = LoraSpec(rank=4, alpha=8.0, seed=0)


@dataclass
class Answer:
    value: object

    def result(self):
        if isinstance(self.value, LoractlError):
            raise self.value
        return self.value


@dataclass
class State:
    """The weights stand for the batches that they were trained on, in order."""

    weights: tuple[tuple[int, ...], ...] = ()
    gradients: tuple[int, ...] = ()


@dataclass
class FakeAdapter:
    fail: Callable[[str, int], LoractlError | None] = lambda kind, number: None
    state: State = field(default_factory=State)
    checkpoint: State | None = None
    lost: bool = False
    operations: int = 0
    published: int = 0

    @property
    def details(self) -> AdapterDetails:
        return AdapterDetails(
            adapter=AdapterId("ad-1"),
            tenant=LOCAL_TENANT,
            name="pirate",
            lora=LORA,
            step=len(self.state.weights),
            version=self.published,
            checkpoint_step=-1 if self.checkpoint is None else len(self.checkpoint.weights),
            parameters=1,
            state_bytes=1,
            created_unix_s=0.0,
        )

    def forward_backward(self, datums: Packed, loss: str) -> Answer:
        def run():
            self.state = replace(self.state, gradients=self.state.gradients + tuple(datums.tokens.tolist()))
            return PassResult(
                logprobs=np.empty(0, np.float32),
                loss_terms=np.empty(0, np.float32),
                metrics={"loss:sum": 0.5},
            )

        return self._do("forward_backward", run)

    def optim_step(self, learning_rate: float) -> Answer:
        def run():
            applied = bool(self.state.gradients)
            if applied:
                self.state = State((*self.state.weights, self.state.gradients))
            return StepResult(
                applied=applied,
                step=len(self.state.weights),
                grad_norm=1.0,
                learning_rate=learning_rate,
                tokens=0,
            )

        return self._do("optim_step", run)

    def save(self, name: str, *, overwrite: bool = False) -> Answer:
        def run():
            self.checkpoint = self.state
            return CheckpointSaved(
                adapter=AdapterId("ad-1"), name=name, step=len(self.state.weights), digest="", size_bytes=0
            )

        return self._do("save", run)

    def load(self, name: str) -> Answer:
        def run():
            assert self.checkpoint is not None
            self.state = self.checkpoint
            return StateLoaded(step=len(self.state.weights))

        return self._do("load", run)

    def publish(self) -> Answer:
        def run():
            self.published += 1
            record = VersionRecord(
                adapter=AdapterId("ad-1"),
                tenant=LOCAL_TENANT,
                name="pirate",
                number=self.published,
                step=len(self.state.weights),
                directory="",
                digest="",
                lora=LORA,
                modules=1,
                probe_tokens=(),
                probe_logprobs=(),
            )
            return Receipt(
                record=record,
                sampler="",
                engine="",
                engine_reason="",
                modules_bound=0,
                probe_max_abs_diff=None,
                waited_ms=0.0,
            )

        return self._do("publish", run)

    def reopen(self) -> AdapterDetails:
        self.lost = False
        return self.details

    def restart(self) -> None:
        self.state = self.checkpoint or State()
        self.lost = True

    def _do(self, kind: str, run: Callable[[], object]) -> Answer:
        self.operations += 1
        if self.lost:
            return Answer(LaneLost("the trainer restarted"))
        error = self.fail(kind, self.operations)
        if isinstance(error, LaneLost):
            self.restart()
        return Answer(error or run())


def run_of(adapter: FakeAdapter, *, stop=lambda: False, **settings) -> TrainingRun:
    chosen = RunSettings(batch_size=4, **settings)
    return TrainingRun(adapter, DATUMS, plan_run(chosen, len(DATUMS)), chosen, stop)


def expected_weights(steps: int) -> tuple[tuple[int, ...], ...]:
    plan = plan_run(RunSettings(batch_size=4, max_steps=steps), len(DATUMS))
    return tuple(plan.batch(step) for step in range(steps))


def failing_once(kind: str, nth: int, error: LoractlError):
    seen = 0

    def fail(operation: str, number: int) -> LoractlError | None:
        nonlocal seen
        seen += operation == kind
        return error if operation == kind and seen == nth else None

    return fail


def test_a_run_takes_every_step_on_its_batch_then_saves_and_publishes():
    adapter = FakeAdapter()

    events = list(run_of(adapter, max_steps=7, save_every=3).events())

    assert adapter.state.weights == expected_weights(7)
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(1, 8))
    assert [e.step for e in events if isinstance(e, Saved)] == [3, 6, 7]
    assert isinstance(events[-1], Published)
    assert adapter.checkpoint == adapter.state


def test_two_steps_are_in_flight():
    adapter = FakeAdapter()
    events = run_of(adapter, max_steps=9).events()

    next(events)

    assert len(adapter.state.weights) == 2


def test_an_interrupted_run_saves_what_was_sent_and_says_where_it_is():
    adapter = FakeAdapter()
    stopping = False
    events = run_of(adapter, max_steps=9, stop=lambda: stopping).events()
    next(events)
    next(events)
    stopping = True

    *_, last = events

    assert last == Stopped(3)
    assert adapter.published == 0
    assert adapter.checkpoint is not None
    assert adapter.checkpoint.weights == expected_weights(3)


def test_a_resumed_run_ends_as_one_that_never_stopped():
    adapter = FakeAdapter()
    list(run_of(adapter, max_steps=4).events())
    adapter.state = State(adapter.state.weights, gradients=(7, 7))  # its client died in mid-step

    events = list(run_of(adapter, max_steps=9).events(from_checkpoint=True))

    assert adapter.state.weights == expected_weights(9)
    assert events[0] == WentBack(4)
    assert events[1].step == 5


def test_a_restarted_trainer_goes_on_from_the_checkpoint():
    adapter = FakeAdapter(fail=failing_once("optim_step", 6, LaneLost("the trainer restarted")))

    events = list(run_of(adapter, max_steps=9, save_every=4).events())

    assert TrainerRestarted(4, "the trainer restarted") in events
    assert adapter.state.weights == expected_weights(9)


@pytest.mark.parametrize("kind", ["save", "load", "publish"])
def test_a_restart_at_any_other_operation_is_survived_too(kind):
    adapter = FakeAdapter(fail=failing_once(kind, 1, LaneLost("gone")), checkpoint=State())

    events = list(run_of(adapter, max_steps=5).events(from_checkpoint=kind == "load"))

    assert adapter.state.weights == expected_weights(5)
    assert isinstance(events[-1], Published)


def test_a_trainer_that_always_dies_at_one_step_is_given_up():
    def dies_at_step_3(kind: str, number: int) -> LoractlError | None:
        return LaneLost("gone") if kind == "optim_step" and len(adapter.state.weights) == 2 else None

    adapter = FakeAdapter(fail=dies_at_step_3)

    with pytest.raises(LaneLost):
        list(run_of(adapter, max_steps=5).events())


def test_a_failed_step_undoes_the_one_that_ran_behind_it():
    adapter = FakeAdapter(fail=failing_once("forward_backward", 4, NotFinite("the loss is NaN")))

    with pytest.raises(NotFinite, match="step 4: the loss is NaN; 'pirate' is back at step 2"):
        list(run_of(adapter, max_steps=9, save_every=2).events())

    assert adapter.state.weights == expected_weights(2)
    assert adapter.state.gradients == ()


def test_an_adapter_that_was_deleted_meanwhile_is_not_said_to_be_saved():
    def deleted_after_step_3(kind: str, number: int) -> LoractlError | None:
        if len(adapter.state.weights) < 3:
            return None
        return AdapterNotFound("gone") if kind == "load" else Aborted("the adapter was deleted")

    adapter = FakeAdapter(fail=deleted_after_step_3)

    with pytest.raises(Aborted, match=r"^step 4: the adapter was deleted$"):
        list(run_of(adapter, max_steps=9, save_every=2).events())


def test_a_failed_publish_leaves_the_trained_adapter_as_it_is():
    adapter = FakeAdapter(fail=failing_once("publish", 1, PublishFailed("nobody serves it")))

    with pytest.raises(PublishFailed, match=r"^nobody serves it$"):
        list(run_of(adapter, max_steps=5).events())

    assert adapter.state.weights == expected_weights(5)


def test_a_second_client_on_the_adapter_is_noticed_and_left_alone():
    adapter = FakeAdapter()
    events = run_of(adapter, max_steps=9).events()
    next(events)

    adapter.forward_backward(Packed(*[np.asarray([1])] * 6), "cross_entropy")
    adapter.optim_step(1.0)

    with pytest.raises(SequenceConflict, match="another client trains 'pirate'"):
        list(events)
    assert len(adapter.state.weights) > 3


def test_runs_of_several_adapters_can_take_turns():
    adapters = [FakeAdapter(), FakeAdapter()]
    runs = [run_of(adapter, max_steps=5).events() for adapter in adapters]

    for pair in zip(*runs, strict=True):
        assert type(pair[0]) is type(pair[1])

    assert [a.state.weights for a in adapters] == [expected_weights(5)] * 2
