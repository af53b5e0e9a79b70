"""One scenario, one way through: from the first registration to the last answer."""

import gc
from typing import Literal

from .costs import Machine
from .fifo import FifoTrainer
from .record import Record
from .scenarios import Scenario
from .trainer import FairTrainer
from .world import World

Way = Literal["fair", "fifo"]
WAYS: tuple[Way, ...] = ("fair", "fifo")


def simulate(scenario: Scenario, machine: Machine, way: Way) -> Record:
    record = Record(scenario.tenants)
    world = World(
        scenario.config,
        scenario.tenants,
        scenario.arrivals(),
        record,
        steps=scenario.steps,
        until_s=scenario.until_s,
    )
    trainer = (FairTrainer if way == "fair" else FifoTrainer)(scenario.config, world, machine, record)
    gc.collect()  # what earlier simulations left is not to be measured here
    trainer.run()
    record.ended_at = world.now
    return record
