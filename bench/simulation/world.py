"""Everything around the trainer: the clock, the clients, and the real broker between them and the trainer.

The trainer sees what its link shows it, `receive` and `reply`, and spends time with `spend`. Requests and
answers are real frames that go through the real broker; sockets and sleeping are left out.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from loractl.bus.codec import decode, encode, peek
from loractl.bus.config import Config
from loractl.bus.identities import unsolicited
from loractl.bus.ids import ActorId, AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    ActorReady,
    AdapterCreated,
    CreateAdapter,
    Envelope,
    Failed,
    ForwardBackward,
    LoraSpec,
    Message,
    OptimStep,
)
from loractl.daemon.broker import Broker
from loractl.daemon.decisions import ClientId, Decision, Forward, Relay, Reply, Tell
from loractl.daemon.status import Identity

from .record import Record
from .tenants import Arrivals, Tenant

TRAINER = ActorId("trainer")
# An idle loop that turns so often while operations wait has lost them.
_PATIENCE = 1000
_NONE = np.zeros(0, dtype=np.float32)


class World:
    """No more than so many steps are sent, and none after `until_s`; then what was sent is answered, and
    the trainer is told to stop."""

    def __init__(
        self,
        config: Config,
        tenants: Sequence[Tenant],
        arrivals: Arrivals,
        record: Record,
        *,
        steps: int,
        until_s: float,
    ) -> None:
        self.now = 0.0
        self._config = config
        self._tenants = {each.id: each for each in tenants}
        self._arrivals = arrivals
        self._steps_left = steps
        self._until_s = until_s
        self._record = record
        self._broker = Broker(config, {TRAINER: "trainer"}, Identity(version="0", pid=0, started=0.0))
        self._mailbox: list[Envelope] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []  # a heap; at, in order of planning
        self._planned = 0
        self._asked = 0
        self._under_way = 0
        self._lanes: dict[int, LaneId] = {}
        self._seqs: dict[int, int] = {}
        self._ends: dict[int, Tenant] = {}  # the operations that end a step
        self._idle_turns = 0
        self._stopping = False

    # --- what the trainer sees ---------------------------------------------------------------

    def ready(self) -> None:
        self._heard(unsolicited(ActorReady(actor=TRAINER, role="trainer", pid=0, details="")))
        for tenant in self._tenants.values():
            lora = LoraSpec(rank=tenant.rank, alpha=16.0, seed=tenant.number)
            self._send(tenant, RequestId(f"create-{tenant.number}"), CreateAdapter(name="one", lora=lora))

    def receive(self, timeout_s: float) -> list[Envelope]:
        """What came by now; if nothing did, what comes first, or nothing once the time is over."""
        self._happen()
        if not (self._mailbox or self._busy or self._stopping):
            self._stopping = True
            self._perform(self._broker.drain(self.now))
        if not self._mailbox and timeout_s > 0:
            self._idle(timeout_s)
        came, self._mailbox = self._mailbox, []
        return came

    def reply(self, to: Envelope, body: Message, last: bool = True) -> None:
        self._heard(Envelope(request=to.request, tenant=to.tenant, body=body, last=last))

    def turn(self) -> None:
        """A real link takes in here that the trainer lives."""

    def spend(self, milliseconds: float) -> None:
        self.now += milliseconds / 1e3

    def begun(self, request: RequestId) -> None:
        self._record.begun(int(request, 16), self.now)

    def tenant(self, envelope: Envelope) -> Tenant:
        return self._tenants[envelope.tenant]

    # --- time --------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        registering = len(self._lanes) < len(self._tenants)
        return registering or bool(self._events) or self._under_way > 0

    def _plan(self, at: float, tenant: Tenant) -> None:
        heapq.heappush(self._events, (at, self._planned, lambda: self._send_step(tenant)))
        self._planned += 1

    def _happen(self) -> None:
        """All that is due by now, each at its own time."""
        until = self.now
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def _idle(self, timeout_s: float) -> None:
        first = self._events[0][0] if self._events else math.inf
        self._idle_turns = 0 if first < math.inf else self._idle_turns + 1
        assert self._idle_turns < _PATIENCE, f"{self._under_way} operations wait and none runs"
        self.now = min(self.now + timeout_s, max(first, self.now))
        self._happen()

    # --- the clients -------------------------------------------------------------------------

    def _send_step(self, tenant: Tenant) -> None:
        if not self._steps_left or self.now > self._until_s:
            self._record.sent_last(self.now)
            return
        self._steps_left -= 1
        seq = self._seqs[tenant.number] = self._seqs.get(tenant.number, -1) + 2
        lane = self._lanes[tenant.number]
        whole = _batch(tenant.lengths)
        self._send_operation(tenant, replace(whole, adapter=tenant.adapter, lane=lane, seq=seq))
        self._ends[self._asked] = tenant
        self._send_operation(
            tenant, OptimStep(adapter=tenant.adapter, lane=lane, seq=seq + 1, learning_rate=1e-4)
        )

    def _send_operation(self, tenant: Tenant, body: Message) -> None:
        number = self._asked
        self._asked += 1
        self._under_way += 1
        self._record.sent(number, tenant, self.now)
        self._send(tenant, RequestId(f"{number:032x}"), body)

    def _send(self, tenant: Tenant, request: RequestId, body: Message) -> None:
        frames = encode(Envelope(request=request, tenant=tenant.id, body=body))
        client = ClientId(tenant.id.encode())
        with self._record.brokering.measured():
            header = peek(frames[0], self._config.limits)
            decisions = self._broker.request(client, header, frames, self.now)
        self._record.brokering.over()
        self._perform(decisions)

    def _hear_answer(self, answer: Envelope) -> None:
        if not answer.last:
            return  # a notice that it waits
        if isinstance(answer.body, AdapterCreated):
            self._registered(self._tenants[answer.tenant], answer.body)
            return
        number = int(answer.request, 16)
        self._under_way -= 1
        self._record.answered(number, self.now, failed=isinstance(answer.body, Failed))
        tenant = self._ends.pop(number, None)
        if tenant is not None:
            at = self._arrivals.next_after(tenant, self.now)
            if at is not None:
                self._plan(at, tenant)

    def _registered(self, tenant: Tenant, answer: AdapterCreated) -> None:
        self._lanes[tenant.number] = answer.lane
        if len(self._lanes) == len(self._tenants):  # nobody trains before all are there
            for at, whose in self._arrivals.first():
                self._plan(self.now + at, whose)

    # --- the broker --------------------------------------------------------------------------

    def _heard(self, answer: Envelope) -> None:
        frames = encode(answer)
        with self._record.brokering.measured():
            header = peek(frames[0], self._config.limits)
            decisions = self._broker.heard(TRAINER, header, frames, self.now)
        self._record.brokering.over()
        self._perform(decisions)

    def _perform(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Forward(frames=frames):
                    self._mailbox.append(decode(frames, self._config.limits))
                case Tell(envelope=envelope):
                    self._mailbox.append(envelope)
                case Relay(frames=frames):
                    self._hear_answer(decode(frames, self._config.limits))
                case Reply(envelope=envelope):
                    self._hear_answer(envelope)
                case _:
                    pass  # for the supervisor and for subscribers, of whom there are none


@cache
def _batch(lengths: tuple[int, ...]) -> ForwardBackward:
    """A forward_backward of nobody yet. Its arrays travel without a copy, so all tenants share them."""
    total = sum(lengths)
    return ForwardBackward(
        adapter=AdapterId(""),
        lane=LaneId(""),
        seq=0,
        lengths=np.array(lengths, dtype=np.int64),
        tokens=np.zeros(total, dtype=np.int64),
        targets=np.zeros(total, dtype=np.int64),
        weights=np.ones(total, dtype=np.float32),
        old_logprobs=_NONE,
        advantages=_NONE,
        loss="cross_entropy",
    )
