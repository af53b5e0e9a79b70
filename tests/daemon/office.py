"""What the broker's tests share: a broker with real frames going in, and its decisions read back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from loractl.bus.codec import decode, encode, peek
from loractl.bus.config import Config
from loractl.bus.ids import ActorId, AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import (
    ActorReady,
    ActorRole,
    AdapterDetails,
    Envelope,
    ForwardBackward,
    GetVersions,
    LoraSpec,
    Message,
    Sample,
    VersionRecord,
    VersionReleased,
    VersionServed,
)
from loractl.daemon.broker import Broker
from loractl.daemon.decisions import ClientId, Decision, Forward, Publish, Relay, Reply, Tell
from loractl.daemon.status import Identity

ALICE, BOB = TenantId("alice"), TenantId("bob")
ANN, BEN = ClientId(b"ann"), ClientId(b"ben")
TRAINER, SAMPLER, OTHER_SAMPLER = ActorId("trainer"), ActorId("sampler-0"), ActorId("sampler-1")
ROLES: dict[ActorId, ActorRole] = {TRAINER: "trainer", SAMPLER: "sampler", OTHER_SAMPLER: "sampler"}
LORA = LoraSpec(rank=4, alpha=8.0, seed=0)


def record(
    number: int, adapter: str = "ad-1", tenant: TenantId = ALICE, *, held: bool = False
) -> VersionRecord:
    return VersionRecord(
        adapter=AdapterId(adapter),
        tenant=tenant,
        name="pirate",
        number=number,
        step=number,
        directory=f"/versions/{adapter}/{number}",
        digest="00",
        lora=LORA,
        modules=7,
        probe_tokens=(1, 2),
        probe_logprobs=(-1.0,),
        held=held,
    )


def sample(adapter: str | None = "ad-1", version: int | None = None) -> Sample:
    return Sample(
        adapter=None if adapter is None else AdapterId(adapter),
        version=version,
        prompt=np.arange(3, dtype=np.int64),
        max_tokens=4,
    )


def details_of(adapter: AdapterId, tenant: TenantId = ALICE) -> AdapterDetails:
    return AdapterDetails(
        adapter=adapter,
        tenant=tenant,
        name="pirate",
        lora=LORA,
        step=0,
        version=0,
        checkpoint_step=-1,
        parameters=10,
        state_bytes=40,
        created_unix_s=0.0,
    )


def forward_backward(
    seq: int = 1, *, positions: int = 2, lane: str = "ln-1", adapter: str = "ad-1"
) -> ForwardBackward:
    ints, floats = np.arange(positions, dtype=np.int64), np.ones(positions, dtype=np.float32)
    none = np.zeros(0, dtype=np.float32)
    return ForwardBackward(
        adapter=AdapterId(adapter),
        lane=LaneId(lane),
        seq=seq,
        lengths=np.array([positions], dtype=np.int64),
        tokens=ints,
        targets=ints,
        weights=floats,
        old_logprobs=none,
        advantages=none,
        loss="cross_entropy",
    )


def served(actor: ActorId, number: int, error: str = "", adapter: str = "ad-1") -> VersionServed:
    return VersionServed(
        actor=actor,
        adapter=AdapterId(adapter),
        version=number,
        engine="torch",
        engine_reason="it trains the unembedding",
        modules_bound=7,
        probe_max_abs_diff=1e-6,
        error=error,
    )


@dataclass
class Office:
    """A broker, its clock, and a plain way to speak to it."""

    config: Config = field(default_factory=Config)
    roles: dict[ActorId, ActorRole] = field(default_factory=lambda: dict(ROLES))
    now: float = 0.0

    def __post_init__(self) -> None:
        identity = Identity(version="1.2.3", pid=42, started=0.0)
        self.broker = Broker(self.config, self.roles, identity)

    def ask(
        self, body: Message, *, request: str = "r1", client: ClientId = ANN, tenant: TenantId = ALICE
    ) -> list[Decision]:
        frames = encode(Envelope(request=RequestId(request), tenant=tenant, body=body))
        return self.broker.request(client, peek(frames[0], self.config.limits), frames, self.now)

    def answer(
        self,
        actor: ActorId,
        body: Message,
        *,
        request: str = "r1",
        tenant: TenantId = ALICE,
        last: bool = True,
    ) -> list[Decision]:
        frames = encode(Envelope(request=RequestId(request), tenant=tenant, body=body, last=last))
        return self.broker.heard(actor, peek(frames[0], self.config.limits), frames, self.now)

    def report(self, actor: ActorId, body: Message) -> list[Decision]:
        return self.answer(actor, body, request="", tenant=TenantId(""))

    def ready(
        self, actor: ActorId, *, versions: Sequence[VersionRecord] = (), adapters: int = 0, pid: int = 0
    ) -> list[Decision]:
        body = ActorReady(
            actor=actor,
            role=self.roles[actor],
            pid=pid,
            details="warm",
            versions=tuple(versions),
            adapters=adapters,
        )
        return self.report(actor, body)

    def all_ready(self) -> "Office":
        """Everybody is up, and samplers have read the table, as they do when they are."""
        for actor, role in self.roles.items():
            self.ready(actor)
            if role == "sampler":
                self.tables(actor)
        return self

    def lose(self, actor: ActorId, *, for_good: bool = False) -> list[Decision]:
        return self.broker.lost(actor, for_good=for_good, details="exit code 1", now=self.now)

    def tables(self, actor: ActorId) -> list[Decision]:
        return self.answer(actor, GetVersions(), request="t1", tenant=TenantId(""))

    def release(self, actor: ActorId, number: int, adapter: str = "ad-1") -> list[Decision]:
        body = VersionReleased(actor=actor, adapter=AdapterId(adapter), version=number)
        return self.report(actor, body)

    def read(self, decision: Decision) -> Message:
        """The message inside a decision."""
        match decision:
            case Forward(frames=frames) | Relay(frames=frames):
                return decode(frames, self.config.limits).body
            case Tell(envelope=envelope) | Reply(envelope=envelope):
                return envelope.body
            case Publish(event=event):
                return event
        raise AssertionError(decision)

    def only(self, decisions: list[Decision]) -> Message:
        assert len(decisions) == 1, decisions
        return self.read(decisions[0])


def small(*, inflight: int = 4096, queued: int = 0, held: int = 0, **publish: float) -> Config:
    """queued, held: a tenant's positions with the trainer, and bytes that wait; 0 is no bound."""
    config = Config()
    return replace(
        config,
        limits=replace(config.limits, inflight_per_tenant=inflight),
        quotas=replace(config.quotas, queued_tokens=queued, held_bytes=held),
        publish=replace(config.publish, **publish),
    )
