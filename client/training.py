"""A training run: takes the steps of its plan on one adapter and tells what happened as events.

It keeps two steps in flight, so that the trainer never waits for the client. The price is that a
failure is noticed when a later step has already run; the run then goes back to its last checkpoint,
so that step k has always trained on batch k and on nothing else.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..bus.errors import ActorRestarting, AdapterNotFound, LaneLost, LoractlError, SequenceConflict
from ..bus.messages import (
    AdapterDetails,
    CheckpointSaved,
    LossName,
    PassResult,
    Receipt,
    StateLoaded,
    StepResult,
)
from .datums import Batch, Datum, Packed
from .futures import Reply
from .run_plan import RunPlan, RunSettings

# The one checkpoint that a run writes over and over; `--resume` goes on from it.
CHECKPOINT = "train"
_STEPS_IN_FLIGHT = 2
_RESTARTS_WITHOUT_A_SAVE = 5


class Trainable(Protocol):
    """What a run needs of an adapter, see `adapter.Adapter`."""

    @property
    def details(self) -> AdapterDetails: ...
    def forward_backward(self, datums: Packed, loss: LossName) -> Reply[PassResult]: ...
    def optim_step(self, learning_rate: float) -> Reply[StepResult]: ...
    def save(self, name: str, *, overwrite: bool = False) -> Reply[CheckpointSaved]: ...
    def load(self, name: str) -> Reply[StateLoaded]: ...
    def publish(self) -> Reply[Receipt]: ...
    def reopen(self) -> AdapterDetails: ...


@dataclass(frozen=True, slots=True)
class StepDone:
    """step: optimizer steps committed so far, of `total`. loss: mean per trained token.
    tokens: all positions that were run; trained: those that were learned from."""

    step: int
    total: int
    loss: float
    grad_norm: float
    tokens: int
    trained: int


@dataclass(frozen=True, slots=True)
class Saved:
    step: int


@dataclass(frozen=True, slots=True)
class WentBack:
    """step: of the run's checkpoint, from which it goes on."""

    step: int


@dataclass(frozen=True, slots=True)
class TrainerRestarted:
    """step: where the adapter's last checkpoint was, and the run goes on."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended early because it was asked to; everything up to `step` is saved."""

    step: int


@dataclass(frozen=True, slots=True)
class Published:
    receipt: Receipt


RunEvent = StepDone | Saved | WentBack | TrainerRestarted | Stopped | Published


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    """step: the count that the adapter will have after it."""

    step: int
    batch: Batch
    passes: list[Reply[PassResult]]
    optim: Reply[StepResult]


class TrainingRun:
    """One run. `events` drives it; runs of several adapters can be driven in turns by one thread."""

    def __init__(
        self,
        adapter: Trainable,
        datums: Sequence[Datum],
        plan: RunPlan,
        settings: RunSettings,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """stop: asked before each step; once it says True the run saves and ends."""
        self._adapter = adapter
        self._datums = datums
        self._plan = plan
        self._settings = settings
        self._stop = stop
        # The adapter's step as last heard of, and the step of this run's checkpoint.
        self._step = self._saved_step = adapter.details.step
        self._unsaved = False
        self._flight: deque[_StepInFlight] = deque()
        self._restarts = 0

    def events(self, *, from_checkpoint: bool = False) -> Iterator[RunEvent]:
        """Take the remaining steps, save, publish.

        from_checkpoint: begin by going back to this run's last checkpoint. What an earlier client
        left behind, such as gradients without their optimizer step, is gone with that.

        Raises:
            SequenceConflict: another client trains this adapter at the same time.
            LoractlError: an operation failed; the adapter is back at the run's last checkpoint.
        """
        goes_back = from_checkpoint
        while True:
            try:
                if goes_back:
                    self._load()
                    yield WentBack(self._step)
                else:
                    self._save()
                yield from self._steps()
                yield from self._finish()
                return
            except (LaneLost, ActorRestarting) as error:
                lost = error
            except SequenceConflict:
                raise  # going back would undo the work of the other client
            except LoractlError as error:
                raise self._after_failure(error) from error
            yield self._reopen(lost)
            goes_back = False

    def _steps(self) -> Iterator[RunEvent]:
        while True:
            while self._may_send():
                self._flight.append(self._send())
            if not self._flight:
                return
            yield self._settle(self._flight.popleft())
            if self._step % self._settings.save_every == 0:
                self._save()
                self._restarts = 0
                yield Saved(self._step)

    def _finish(self) -> Iterator[RunEvent]:
        if self._saved_step != self._step:
            self._save()
            yield Saved(self._step)
        if self._step < self._plan.total_steps:
            yield Stopped(self._step)
        else:
            yield Published(self._adapter.publish().result())

    def _may_send(self) -> bool:
        ahead = len(self._flight)
        # Nothing is sent past a step that is to be saved: a save must not follow a step that failed.
        save_first = ahead > 0 and (self._step + ahead) % self._settings.save_every == 0
        more = self._step + ahead < self._plan.total_steps
        return more and ahead < _STEPS_IN_FLIGHT and not save_first and not self._stop()

    def _send(self) -> _StepInFlight:
        self._unsaved = True
        index = self._step + len(self._flight)
        batch = Batch(tuple(self._datums[i] for i in self._plan.batch(index)))
        loss = self._settings.loss
        passes = [self._adapter.forward_backward(packed, loss) for packed in batch.operations(loss)]
        optim = self._adapter.optim_step(self._settings.learning_rate)
        return _StepInFlight(index + 1, batch, passes, optim)

    def _settle(self, sent: _StepInFlight) -> StepDone:
        """Wait for one step. It is the oldest in flight, so its answers come first."""
        loss = sum(p.result().metrics["loss:sum"] for p in sent.passes)
        result = sent.optim.result()
        if result.step != sent.step:
            name = self._adapter.details.name
            raise SequenceConflict(
                f"another client trains {name!r} at the same time: it is at step {result.step}, this run "
                f"expected {sent.step}; let one of the two end, then go on with --resume"
            )
        self._step = sent.step
        batch = sent.batch
        return StepDone(
            sent.step, self._plan.total_steps, loss, result.grad_norm, batch.tokens, batch.trained
        )

    def _save(self) -> None:
        self._at_checkpoint(self._adapter.save(CHECKPOINT, overwrite=True).result().step)

    def _load(self) -> None:
        self._at_checkpoint(self._adapter.load(CHECKPOINT).result().step)

    def _at_checkpoint(self, step: int) -> None:
        self._step = self._saved_step = step
        self._unsaved = False

    def _reopen(self, error: LoractlError) -> TrainerRestarted:
        """Get a new lane from the trainer that comes back; give up when it keeps dying at one place."""
        self._flight.clear()
        reason = error.message
        while True:
            self._restarts += 1
            if self._restarts > _RESTARTS_WITHOUT_A_SAVE:
                raise error
            with contextlib.suppress(LaneLost, ActorRestarting):
                self._at_checkpoint(self._adapter.reopen().step)
                return TrainerRestarted(self._step, reason)

    def _after_failure(self, error: LoractlError) -> LoractlError:
        """Undo the steps since the last checkpoint: those behind the failed one have run, too."""
        if not self._unsaved:
            return error
        name = self._adapter.details.name
        failed = f"step {self._step + 1}: {error.message}"
        try:
            self._load()
        except AdapterNotFound:  # deleted: its checkpoints are gone, too
            return type(error)(failed)
        except LoractlError:
            return type(error)(
                f"{failed}; {name!r} was saved at step {self._saved_step}: --resume goes on there"
            )
        return type(error)(f"{failed}; {name!r} is back at step {self._saved_step}, its last checkpoint")
