"""What an adapter says when it is alone: each life once, in a fresh trainer, one operation at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loractl.bus.messages import (
    AdapterList,
    DeleteAdapter,
    Done,
    Failed,
    ListAdapters,
    PassResult,
    StateLoaded,
    StepResult,
)
from loractl.tests.trainer_actor.loop.harness import Adapter, create
from loractl.tests.trainer_actor.schedules.lives import Life, Load, Op, Pass, Save, Unload, message_of
from loractl.tests.trainer_actor.schedules.said import Said, counters, said
from loractl.tests.trainer_actor.schedules.trainers import Stage


@dataclass(frozen=True, slots=True)
class Told:
    """One operation of a life. open, step: of the adapter's window when it is done."""

    answer: Said
    open: bool
    step: int


@dataclass(frozen=True, slots=True)
class Alone:
    """What a life says by itself. end: the whole state when all is done. counters: what is listed then."""

    told: tuple[Told, ...]
    end: Said
    counters: Said

    def begin_again(self, ops: Sequence[Op], done: int) -> int:
        """Where a client goes on when gradients are lost after `done` operations.

        What an open window holds of a checkpoint comes from the load, so that is done again too.
        """
        while done and self.told[done - 1].open:
            done -= 1
            if isinstance(ops[done], Load) and not self.told[done].answer.failed:
                break
        return done

    def step_after(self, done: int) -> int:
        return self.told[done - 1].step if done else 0


@dataclass(slots=True)
class Lives:
    """Runs lives alone and remembers them. settings: those that an adapter's numbers depend on."""

    model: Path
    layers: int
    settings: Sequence[str] = ()
    known: dict[Life, Alone] = field(default_factory=dict)
    _stage: Stage | None = None

    def alone(self, life: Life) -> Alone:
        if life not in self.known:
            self.known[life] = self._live(life)
        return self.known[life]

    def close(self) -> None:
        if self._stage is not None:
            self._stage.close()

    def _live(self, life: Life) -> Alone:
        stage = self._fresh_stage()
        adapter = create(stage.office, "alone", **_fields(life))
        told: list[Told] = []
        for index, op in enumerate(life.ops):
            told.append(_tell(stage, adapter, life, index, op, told))
        end = said(
            stage.office.wait(stage.office.send(message_of(Save(), len(life.ops), adapter.next()))),
            stage.office.layout,
        )
        [details] = stage.office.ask(ListAdapters(name="alone"), AdapterList).adapters
        stage.office.ask(DeleteAdapter(adapter=adapter.id), Done)
        return Alone(tuple(told), end, counters(details))

    def _fresh_stage(self) -> Stage:
        if self._stage is None:
            self._stage = Stage.open(self.model, self.layers, ("trainer.slots=1", *self.settings))
        else:
            self._stage.restart()
        return self._stage


def _fields(life: Life) -> dict[str, object]:
    lora = life.lora
    names = ("rank", "alpha", "seed", "train_attn", "train_mlp", "train_unembed")
    return {name: getattr(lora, name) for name in names}


def _tell(stage: Stage, adapter: Adapter, life: Life, index: int, op: Op, before: Sequence[Told]) -> Told:
    answer = stage.office.wait(stage.office.send(message_of(op, index, adapter.next())))
    last = before[-1] if before else Told(Said("", {}), open=False, step=0)
    opened, step = last.open, last.step
    match op, answer:
        case _, Failed():
            pass
        case Pass(backward=True), PassResult():
            opened = True
        case _, StepResult(applied=True, step=step):
            opened = False
        case Load(of=of, with_optimizer=with_optimizer), StateLoaded(step=step):
            saved = isinstance(life.ops[of], Save | Unload)
            opened = with_optimizer and saved and before[of].open
    return Told(said(answer, stage.office.layout), opened, step)
