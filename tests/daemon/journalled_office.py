"""A broker with a real journal, committed at once; a restart is a new broker on the same file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loractl.bus.codec import decode
from loractl.bus.config import Config
from loractl.bus.ids import ActorId, AdapterId, LaneId, TenantId
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    ForwardBackward,
    Message,
    OptimStep,
    PassResult,
    Recovered,
    StepResult,
)
from loractl.daemon.broker import Broker
from loractl.daemon.decisions import Decision, Forward, Key, Relay, Reply, WriteDown
from loractl.daemon.journal.store import Store
from loractl.daemon.replay import OURS
from loractl.daemon.status import Identity
from loractl.tests.daemon.office import ALICE, LORA, TRAINER, Office, details_of, forward_backward


@dataclass
class JournalledOffice(Office):
    file: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self.store = Store(self.file)
        identity = Identity(version="1.2.3", pid=42, started=0.0)
        self.broker = Broker(self.config, self.roles, identity, self.store)

    def restarted(self, config: Config | None = None) -> "JournalledOffice":
        self.store.close()
        return JournalledOffice(config=config or self.config, roles=self.roles, file=self.file)

    def die(self, *in_hand: Key, killed: bool = False, for_good: bool = False) -> list[Decision]:
        """The trainer ends, with these in hand."""
        lost = self.broker.lost(
            TRAINER, for_good=for_good, details="signal 11", now=self.now, killed=killed, in_hand=in_hand
        )
        return self.settled(lost)

    def come(self) -> list[Decision]:
        """The trainer is ready."""
        return self.settled(self.ready(TRAINER))

    def settled(self, decisions: Sequence[Decision], *, refused: str = "") -> list[Decision]:
        """Commit what is to be written down, and what that leads to, until there is no more."""
        told: list[Decision] = []
        waiting = [*decisions]
        while waiting:
            decision = waiting.pop(0)
            if isinstance(decision, WriteDown):
                if not refused:
                    self.store.commit([decision.record])
                waiting = [*self.broker.written(decision.record, self.now, refused=refused), *waiting]
            else:
                told.append(decision)
        return told


def forwarded(decisions: Sequence[Decision]) -> list[Message]:
    return [decode(each.frames, Config().limits).body for each in decisions if isinstance(each, Forward)]


def told(decisions: Sequence[Decision]) -> list[Message]:
    """What clients hear."""
    heard: list[Message] = []
    for each in decisions:
        if isinstance(each, Reply):
            heard.append(each.envelope.body)
        elif isinstance(each, Relay):
            heard.append(decode(each.frames, Config().limits).body)
    return heard


def created(
    office: JournalledOffice, request: str = "c", tenant: TenantId = ALICE
) -> tuple[AdapterId, LaneId]:
    """An adapter with a lane, as the broker named them."""
    asked = office.ask(CreateAdapter(name="pirate", lora=LORA), request=request, tenant=tenant)
    (sent,) = forwarded(office.settled(asked))
    assert isinstance(sent, CreateAdapter)
    reply = AdapterCreated(details=details_of(sent.adapter), lane=sent.lane)
    office.settled(office.answer(TRAINER, reply, request=request, tenant=tenant))
    return sent.adapter, sent.lane


def gather(adapter: AdapterId, lane: LaneId, seq: int) -> ForwardBackward:
    return forward_backward(seq, adapter=adapter, lane=lane)


def step(adapter: AdapterId, lane: LaneId, seq: int) -> OptimStep:
    return OptimStep(adapter=adapter, lane=lane, seq=seq, learning_rate=0.1)


def passed() -> PassResult:
    one = np.ones(1, dtype=np.float32)
    return PassResult(logprobs=one, loss_terms=one, metrics={"loss:sum": 1.0})


def stepped(number: int) -> StepResult:
    return StepResult(applied=True, step=number, grad_norm=1.0, learning_rate=0.1, tokens=2)


def recover(
    office: JournalledOffice, *, number: int = 1, body: Message | None = None, actor: ActorId = TRAINER
) -> list[Decision]:
    """Answer the number-th RecoverAdapter."""
    answer = body or Recovered(step=0)
    return office.settled(office.answer(actor, answer, request=f"recover-{number}", tenant=OURS))
