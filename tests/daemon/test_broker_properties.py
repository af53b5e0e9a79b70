"""Whatever happens in whatever order: every waiter reads one final answer, and nothing is left behind."""

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loractl.bus.codec import decode, peek
from loractl.bus.errors import ActorStopping, RequestConflict
from loractl.bus.ids import ActorId, AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import (
    Abort,
    AdapterDeleted,
    DeleteAdapter,
    DeleteVersion,
    DescribeModel,
    Done,
    DropVersion,
    Envelope,
    Failed,
    LoadVersion,
    Message,
    PublishAdapter,
    Sample,
    VersionRecord,
    VersionRetired,
    VersionWritten,
)
from loractl.daemon.actors import Hold
from loractl.daemon.decisions import Decision, Forward, Key, Publish, Relay, Reply, StopDaemon, Tell
from loractl.daemon.quota_words import quota_reason
from loractl.daemon.versions import VersionKey
from loractl.tests.daemon.office import (
    ALICE,
    ANN,
    BEN,
    BOB,
    OTHER_SAMPLER,
    SAMPLER,
    TRAINER,
    Office,
    forward_backward,
    record,
    sample,
    served,
    small,
)

ACTORS = (TRAINER, SAMPLER, OTHER_SAMPLER)
SAMPLERS = (SAMPLER, OTHER_SAMPLER)
AD1 = AdapterId("ad-1")
PUBLISH = PublishAdapter(adapter=AD1, lane=LaneId("ln-1"), seq=1)
PUBLISH_HELD = PublishAdapter(adapter=AD1, lane=LaneId("ln-1"), seq=1, held=True)
LOAD = LoadVersion(adapter=AD1, lane=LaneId("ln-1"), seq=1, source=AD1, version=1)
BODIES = (
    forward_backward(1),
    forward_backward(2, positions=4),
    forward_backward(1, lane="ln-2"),
    sample(None),
    sample(),
    sample(version=1),
    sample(),
    replace(sample(), owner=ALICE),
    LOAD,
)
tenants = st.sampled_from([ALICE, ALICE, ALICE, BOB])
clients = st.sampled_from([ANN, BEN])
actors = st.sampled_from(ACTORS)


class BrokerMachine(RuleBasedStateMachine):
    """Clients and actors as they might behave, and the promises checked at every decision."""

    def __init__(self) -> None:
        super().__init__()
        config = small(inflight=2, queued=3, held=3000, keep_versions=1)
        # Outcomes never get too old here, so what ended must never run again.
        self.office = Office(config=replace(config, limits=replace(config.limits, outcome_s=1e9)))
        self.broker = self.office.broker
        self.owed: set[tuple[bytes, Key]] = set()
        self.held_by: dict[ActorId, dict[Key, Envelope]] = {actor: {} for actor in ACTORS}
        self.up: set[ActorId] = set()
        self.given_up: set[ActorId] = set()
        self.finished: set[Key] = set()  # with an outcome that is kept
        self.asked: list[tuple[Message, str, TenantId]] = []
        self.disk: dict[int, VersionRecord] = {}
        self.deleted: set[int] = set()
        self.known = 0  # versions up to here the broker has heard of
        self.written = 0
        self.last_event = 0
        self.stopping = False
        self.steps = 0

    # --- clients

    def send(self, body, request, client, tenant) -> list[Decision]:
        key, before = (tenant, RequestId(request)), set(self.owed)
        self.owed.add((client, key))
        try:
            decisions = self.office.ask(body, request=request, client=client, tenant=tenant)
        except (RequestConflict, ActorStopping):  # the loop answers, and nothing changed
            self.owed = before
            return []
        self.perform(decisions)
        return decisions

    @rule(body=st.sampled_from(BODIES), client=clients, tenant=tenants)
    def ask(self, body, client, tenant) -> None:
        request = f"r{len(self.asked)}"
        self.asked.append((body, request, tenant))
        self.send(body, request, client, tenant)

    @precondition(lambda self: self.asked)
    @rule(client=clients, data=st.data())
    def ask_again(self, client, data) -> None:
        body, request, tenant = data.draw(st.sampled_from(self.asked))
        key = (tenant, RequestId(request))
        fresh = key not in self.finished and all(other != key for _, other in self.owed)
        decisions = self.send(body, request, client, tenant)
        if fresh:
            assert not any(isinstance(d, Relay) for d in decisions), "a retryable failure is not kept"

    @precondition(lambda self: self.asked)
    @rule(client=clients, data=st.data())
    def use_an_id_twice(self, client, data) -> None:
        _, request, tenant = data.draw(st.sampled_from(self.asked))
        self.send(DescribeModel(), request, client, tenant)

    @precondition(lambda self: self.asked)
    @rule(client=clients, data=st.data())
    def abort(self, client, data) -> None:
        _, request, tenant = data.draw(st.sampled_from(self.asked))
        self.send(Abort(target=RequestId(request)), f"a{self.steps}", client, tenant)

    @rule(client=clients, seldom=st.sampled_from(range(10)))
    def delete(self, client, seldom) -> None:
        if seldom == 7:
            self.send(DeleteAdapter(adapter=AD1), f"d{self.steps}", client, ALICE)

    @precondition(lambda self: self.written)
    @rule(client=clients, tenant=tenants, data=st.data())
    def delete_version(self, client, tenant, data) -> None:
        number = data.draw(st.integers(1, self.written + 1))
        if tenant == ALICE and number <= self.known:
            self.deleted.add(number)
        self.send(DeleteVersion(adapter=AD1, version=number), f"v{self.steps}", client, tenant)

    # --- actors

    @precondition(lambda self: any(self.held_by.values()))
    @rule(data=st.data(), how=st.sampled_from(["done", "done", "done", "part", "retryable", "failed"]))
    def answer(self, data, how) -> None:
        busy = [actor for actor in ACTORS if self.held_by[actor]]
        actor = data.draw(st.sampled_from(busy))
        key = data.draw(st.sampled_from(sorted(self.held_by[actor])))
        if how == "done":
            self.succeed(actor, key)
        elif how == "part":
            self.perform(self.office.answer(actor, Done(), request=key[1], tenant=key[0], last=False))
        else:
            del self.held_by[actor][key]
            body = Failed(code="x", message="", retryable=how == "retryable", fault="user")
            self.perform(self.office.answer(actor, body, request=key[1], tenant=key[0]))

    @rule(actor=actors)
    def answer_everything(self, actor) -> None:
        for key in [*self.held_by[actor]]:
            self.succeed(actor, key)

    @rule(client=clients, body=st.sampled_from([PUBLISH, PUBLISH_HELD]))
    def publish(self, client, body) -> None:
        self.ask(body, client, ALICE)
        self.answer_everything(TRAINER)

    @rule(actor=actors)
    def answer_too_late(self, actor) -> None:
        """From a process that died, or for a request that never was."""
        for body, request, tenant in self.asked:
            key = (tenant, RequestId(request))
            if not isinstance(body, PublishAdapter) and key not in self.held_by[actor]:
                assert self.office.answer(actor, Done(), request=request, tenant=tenant) == []

    def succeed(self, actor: ActorId, key: Key) -> None:
        body: Message = Done()
        if isinstance(asked := self.held_by[actor].pop(key).body, PublishAdapter):
            body = self.write_a_version(held=asked.held)
            self.known = self.written
        self.perform(self.office.answer(actor, body, request=key[1], tenant=key[0]))

    def write_a_version(self, *, held: bool) -> VersionWritten:
        self.written += 1
        self.disk[self.written] = record(self.written, held=held)
        return VersionWritten(record=self.disk[self.written])

    @rule(actor=actors, for_good=st.sampled_from([False] * 9 + [True]))
    def die(self, actor, for_good) -> None:
        if actor in self.given_up:
            return
        if actor == TRAINER and any(isinstance(e.body, PublishAdapter) for e in self.held_by[actor].values()):
            self.write_a_version(held=True)  # and died before it could say so
        self.up.discard(actor)
        if for_good:
            self.given_up.add(actor)
        self.held_by[actor].clear()
        self.perform(self.office.lose(actor, for_good=for_good))

    @initialize()
    def everybody_starts(self) -> None:
        for actor in ACTORS:
            self.get_ready(actor)

    @rule(actor=actors)
    def get_ready(self, actor) -> None:
        if actor in self.up | self.given_up or self.stopping:
            return
        self.up.add(actor)
        versions = [*self.disk.values()] if actor == TRAINER else []
        if actor == TRAINER:
            self.known = self.written
        self.perform(self.office.ready(actor, versions=versions))

    @rule(sampler=st.sampled_from(SAMPLERS))
    def read_the_table(self, sampler) -> None:
        if sampler in self.up:
            self.perform(self.office.tables(sampler))

    @precondition(lambda self: self.written)
    @rule(sampler=st.sampled_from(SAMPLERS), data=st.data(), error=st.sampled_from(["", "", "torn"]))
    def serve(self, sampler, data, error) -> None:
        number = data.draw(st.integers(1, self.written))
        self.perform(self.office.report(sampler, served(sampler, number, error=error)))

    @precondition(lambda self: self.written)
    @rule(sampler=st.sampled_from(SAMPLERS), data=st.data())
    def release(self, sampler, data) -> None:
        self.perform(self.office.release(sampler, data.draw(st.integers(1, self.written))))

    @rule(seconds=st.sampled_from([0.1, 100.0]))
    def time_goes_by(self, seconds) -> None:
        self.office.now += seconds
        self.perform(self.broker.tick(self.office.now))

    @rule()
    def stop(self) -> None:
        if not self.stopping and self.steps > 70:
            self.stopping = True
            self.perform(self.broker.drain(self.office.now))

    # --- the promises

    def perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Forward(actor=actor, frames=frames):
                    self.receive(actor, decode(frames, self.office.config.limits))
                case Relay(client=client, frames=frames):
                    header = peek(frames[0], self.office.config.limits)
                    envelope = decode(frames, self.office.config.limits)
                    self.deliver(client, envelope)
                    assert header.last == envelope.last
                case Reply(client=client, envelope=envelope):
                    self.deliver(client, envelope)
                case Publish(event=event):
                    self.last_event += 1
                    assert event.number == self.last_event, "events have no gap"
                    self.retired(event)
                case Tell(actor=actor, envelope=envelope):
                    assert actor in self.up
                    if isinstance(envelope.body, DropVersion):
                        self.disk.pop(envelope.body.version, None)
                case StopDaemon():
                    raise AssertionError("nobody asked for it")

    def receive(self, actor: ActorId, envelope: Envelope) -> None:
        key = (envelope.tenant, envelope.request)
        assert actor in self.up, "only a living actor gets requests"
        assert key not in self.finished, "what ended never runs again"
        assert all(key not in held for held in self.held_by.values()), "nothing runs twice at a time"
        if isinstance(envelope.body, Sample):
            assert (envelope.body.version is None) == (envelope.body.adapter is None)
        self.held_by[actor][key] = envelope

    def deliver(self, client: bytes, envelope: Envelope) -> None:
        key = (envelope.tenant, envelope.request)
        assert (client, key) in self.owed, "an answer that nobody waits for"
        if envelope.last:
            self.owed.remove((client, key))
            if not (isinstance(envelope.body, Failed) and envelope.body.retryable):
                self.finished.add(key)

    def retired(self, event) -> None:
        """No admitted sample is left on a version when its event goes out."""
        match event:
            case VersionRetired(adapter=adapter, version=number):
                gone = {VersionKey(adapter, number)}
                held = number in self.disk and self.disk[number].held
                assert not held or number in self.deleted, "a held version stays until it is deleted"
            case AdapterDeleted(adapter=adapter):
                gone = {VersionKey(adapter, number) for number in range(1, self.written + 1)}
            case _:
                return
        for held in self.held_by.values():
            for envelope in held.values():
                if isinstance(envelope.body, Sample) and envelope.body.adapter is not None:
                    assert VersionKey(envelope.body.adapter, envelope.body.version) not in gone

    @invariant()
    def count(self) -> None:
        self.steps += 1

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        dispatch = self.broker._dispatch
        for ticket in dispatch.ledger.under_way():
            if ticket.waits_for:
                away = isinstance(dispatch.actors.choose(ticket.destination), Hold)
                assert away or quota_reason(dispatch.waitlist, ticket)

    @invariant()
    def places_are_counted_right(self) -> None:
        dispatch = self.broker._dispatch
        taken = Counter(
            key[0]
            for held in self.held_by.values()
            for key, envelope in held.items()
            if not isinstance(envelope.body, Abort)
        )
        for tenant in (ALICE, BOB):
            # One more than may be: the number 1 that a lane at the trainer waits for with its 2.
            assert dispatch.waitlist._with_actors.get(tenant, 0) == taken[tenant] <= 2 + 1

    @invariant()
    def everybody_who_waits_is_known(self) -> None:
        waiting = {
            (client, ticket.key)
            for ticket in self.broker._dispatch.ledger.under_way()
            for client in ticket.waiters
        }
        assert waiting == self.owed

    def teardown(self) -> None:
        self.perform(self.broker.drain(self.office.now))
        for actor in self.up - self.given_up:
            self.held_by[actor].clear()
            self.perform(self.office.lose(actor))
        self.perform(self.broker.finish(self.office.now))
        dispatch = self.broker._dispatch
        assert not self.owed
        assert len(dispatch.ledger) == 0
        assert not dispatch.waitlist._held
        assert not dispatch.waitlist._with_actors
        pins = [
            v.pins
            for numbers in self.broker._publishing.versions._adapters.values()
            for v in numbers.values()
        ]
        assert not any(pins)


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
