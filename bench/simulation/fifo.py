"""The baseline: operations in the order of their arrival, one adapter on the device at a time.

The same broker, clients and costs as the trainer's own decisions get, and the same tiers behind a device of
one slot, so that even here only what changed is copied. Each forward_backward runs alone, in as many passes
as its positions need; whenever another adapter is next, the one on the device makes room for it.
"""

from collections import deque
from dataclasses import replace

from loractl.bus.config import Config
from loractl.bus.messages import CreateAdapter, Drain, Envelope, ForwardBackward, OptimStep
from loractl.trainer_actor.queues import pieces

from .answers import created, passed, stepped
from .costs import Machine
from .device import VirtualDevice
from .record import Record
from .world import World


class FifoTrainer:
    def __init__(self, config: Config, world: World, machine: Machine, record: Record) -> None:
        self._link = world
        self._machine = machine
        self._record = record
        self._queue: deque[Envelope] = deque()
        alone = replace(config, trainer=replace(config.trainer, slots=1))
        self._device = VirtualDevice(alone, machine, world, record)
        self._stopping = False

    def run(self) -> None:
        self._link.ready()
        while not self._stopping:
            for envelope in self._link.receive(0.0 if self._queue else 1.0):
                self._take_in(envelope)
            if self._queue:
                self._run(self._queue.popleft())
            self._record.turn_ended()

    def _take_in(self, envelope: Envelope) -> None:
        match envelope.body:
            case Drain():
                self._stopping = True
            case CreateAdapter():
                tenant = self._link.tenant(envelope)
                self._device.admit(tenant)
                self._link.reply(envelope, created(tenant, self._machine))
            case _:
                self._queue.append(envelope)

    def _run(self, envelope: Envelope) -> None:
        tenant = self._link.tenant(envelope)
        self._device.place_all([tenant.adapter])
        self._link.begun(envelope.request)
        match envelope.body:
            case ForwardBackward() as asked:
                for positions in pieces(asked.lengths, self._machine.pass_tokens):
                    took_ms = self._machine.pass_cost_ms(positions)
                    self._link.spend(took_ms)
                    self._record.ran_pass([(tenant, positions)], took_ms, took_ms)
                self._device.gathered(tenant.adapter)
                self._link.reply(envelope, passed(asked))
            case OptimStep():
                took_ms = self._machine.step_cost_ms(tenant.rank)
                self._link.spend(took_ms)
                self._record.ran_step(tenant, took_ms)
                self._device.stepped(tenant.adapter)
                self._link.reply(envelope, stepped())
