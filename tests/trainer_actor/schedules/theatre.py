"""The trainers of all variants under one roof, and what each life is alone, kept from schedule to schedule."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from loractl.bus.messages import Usage
from loractl.tests.trainer_actor.schedules.alone import Lives
from loractl.tests.trainer_actor.schedules.client import Outcome
from loractl.tests.trainer_actor.schedules.crowd import run
from loractl.tests.trainer_actor.schedules.lives import Life, draw_life
from loractl.tests.trainer_actor.schedules.schedule import Schedule
from loractl.tests.trainer_actor.schedules.trainers import VARIANTS, Stage, make_tiny_model, own_settings

_LIVES = 150


@lru_cache(maxsize=2)
def pool(number: int) -> tuple[Life, ...]:
    """Lives to choose from, short ones first. Few enough for each to be met in several crowds."""
    source = random.Random(number)
    return tuple(sorted((draw_life(source.randrange) for _ in range(_LIVES)), key=lambda life: len(life.ops)))


def shared_part(usage: Sequence[Usage]) -> float:
    """The part of all passes that several adapters shared."""
    passes = sum(each.passes for each in usage)
    return sum(each.shared_passes for each in usage) / passes if passes else 0.0


@dataclass(slots=True)
class Theatre:
    """A trainer for every variant that was asked for, and one for the lives alone."""

    model: Path
    layers: int
    lives: dict[tuple[str, ...], Lives] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def play(self, variant: str, schedule: Schedule) -> Outcome:
        own = own_settings(variant)
        lives = self.lives.setdefault(own, Lives(self.model, self.layers, own))
        stage = self.stages.pop(variant, None) or Stage.open(self.model, self.layers, VARIANTS[variant])
        try:
            outcome = run(schedule, stage, lives)
        except BaseException:
            stage.abandon()
            raise
        self.stages[variant] = stage
        return outcome

    def close(self) -> None:
        for each in (*self.stages.values(), *self.lives.values()):
            each.close()


@contextmanager
def theatre(*, layers: int) -> Iterator[Theatre]:
    """With a base model of so many layers."""
    with tempfile.TemporaryDirectory() as directory:
        opened = Theatre(make_tiny_model(Path(directory), layers), layers)
        yield opened
        opened.close()
