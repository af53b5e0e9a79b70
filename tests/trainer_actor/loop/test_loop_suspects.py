"""An operation that ends the trainer is found out: what it had in hand runs alone the next time."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from loractl.bus.ids import LOCAL_TENANT, RequestId
from loractl.bus.messages import (
    ActorReady,
    Envelope,
    Failed,
    LanePosition,
    OptimStep,
    PassResult,
    Ping,
    RecoverAdapter,
    Recovered,
)
from loractl.daemon.in_hand import read_in_hand
from loractl.tests.trainer_actor.loop.harness import (
    WAIT_S,
    Adapter,
    Office,
    checked,
    create,
    pass_over,
    same,
    start,
    start_process,
    stop,
)
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.in_hand import InHand
from loractl.trainer_actor.part_run import PartRun

OpenOffice = Callable[..., Office]
POISON = 6  # positions of the datum that the engine cannot take


class WatchedEngine(TrainEngine):
    """Says how many operations each pass holds; stays inside the first until it is released; dies of POISON."""

    passes: list[int] = []  # noqa: RUF012  # one engine at a time
    entered = threading.Event()
    released = threading.Event()

    def run(self, runs: Sequence[PartRun]) -> None:
        self.passes.append(len(runs))
        self.entered.set()
        assert self.released.wait(WAIT_S)
        if any(POISON in run.part.lengths for run in runs):
            raise RuntimeError("a datum of these many positions")
        super().run(runs)


@pytest.fixture
def engine() -> Iterator[type[WatchedEngine]]:
    WatchedEngine.passes.clear()
    WatchedEngine.entered.clear()
    WatchedEngine.released.clear()
    yield WatchedEngine
    WatchedEngine.released.set()


def recover(office: Office, *adapters: Adapter) -> None:
    for adapter in adapters:
        lanes = (LanePosition(lane=adapter.lane, next_seq=1),)
        office.ask(RecoverAdapter(adapter=adapter.id, snapshot="", lanes=lanes), Recovered)


def together(office: Office, engine: type[WatchedEngine], bodies: dict[str, object], first: Adapter) -> None:
    """Send these while a pass of `first` is held, so that the next pass finds them all."""
    held = office.send(pass_over(9, **first.next()))
    assert engine.entered.wait(WAIT_S)
    for request, body in bodies.items():
        office.send(body, LOCAL_TENANT, RequestId(request))  # type: ignore[arg-type]
    engine.released.set()
    checked(office.wait(held), PassResult)


def poisoned(adapter: Adapter) -> object:
    one = np.ones(POISON, np.int64)
    return pass_over(
        0,
        lengths=np.array([POISON]),
        tokens=one,
        targets=one,
        weights=one.astype(np.float32),
        **adapter.next(),
    )


def test_a_pass_that_dies_blames_nobody_and_each_of_it_runs_alone_the_next_time(
    open_office: OpenOffice, engine: type[WatchedEngine]
) -> None:
    office = open_office("trainer.slots=4")
    trainer, _ = start(office, engine)
    poet, poison, other = (create(office, name) for name in ("poet", "poison", "other"))
    bodies = {"good": pass_over(1, **poet.next()), "bad": poisoned(poison)}

    together(office, engine, bodies, other)
    answers = [office.wait(RequestId(request)) for request in bodies]

    assert [answer.code for answer in answers if isinstance(answer, Failed)] == ["actor_restarting"] * 2
    assert trainer.join() == 1
    assert engine.passes[-1] == 2
    assert sorted(read_in_hand(office.layout.in_hand)) == [("local", "bad"), ("local", "good")]

    engine.passes.clear()
    engine.entered.clear()
    engine.released.clear()
    trainer, _ = start(office, engine)
    recover(office, poet, poison, other)
    other.seq = 0
    rest = {"new": pass_over(2, **create(office, "new").next())}
    together(office, engine, {**bodies, **rest}, other)

    assert isinstance(office.wait(RequestId("good")), PassResult | Failed)
    crashed = office.wait(RequestId("bad"))
    assert isinstance(crashed, Failed)
    assert crashed.code == "internal"
    assert trainer.join() == 1
    assert set(engine.passes) == {1}


def test_a_bystander_of_a_death_has_the_outcome_that_it_would_have_had(
    open_office: OpenOffice, engine: type[WatchedEngine]
) -> None:
    office = open_office()
    engine.released.set()
    trainer, _ = start(office, engine)
    plain = create(office, "plain")
    expected = plain.forward_backward(1).logprobs
    stop(office, trainer)

    InHand.open(office.layout.in_hand).take(
        [Envelope(request=RequestId(each), tenant=LOCAL_TENANT, body=Ping()) for each in ("first", "second")]
    )
    trainer, _ = start(office, engine)
    one, two = create(office, "one"), create(office, "two")
    for request, adapter in (("first", one), ("second", two)):
        office.send(pass_over(1, **adapter.next()), LOCAL_TENANT, RequestId(request))
    said = [checked(office.wait(RequestId(each)), PassResult).logprobs for each in ("first", "second")]
    steps = [office.send(OptimStep(learning_rate=0.1, **each.next())) for each in (one, two)]

    assert same(said, [expected, expected])
    assert all(not isinstance(office.wait(step), Failed) for step in steps)
    stop(office, trainer)
    assert read_in_hand(office.layout.in_hand) == []


def test_a_killed_process_leaves_a_note_of_the_batch_that_it_was_at(open_office: OpenOffice) -> None:
    office = open_office("trainer.pass_tokens=16")
    process = start_process(office)
    try:
        office.wait_for_report(ActorReady)
        adapter = create(office, "poet")
        adapter.forward_backward(1, forward_only=True)
        count = 4000
        tokens = np.arange(16 * count) % 128
        long = pass_over(
            0,
            lengths=np.full(count, 16),
            tokens=tokens,
            targets=tokens,
            weights=np.ones(16 * count, np.float32),
            **adapter.next(),
        )
        office.send(long, LOCAL_TENANT, RequestId("long"))
        while read_in_hand(office.layout.in_hand) != [("local", "long")]:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait(WAIT_S)

    noted = read_in_hand(office.layout.in_hand)
    trainer, _ = start(office)
    recover(office, adapter)
    adapter.seq = 0

    assert noted in ([("local", "long")], [])  # between two of its pieces nothing is in hand
    assert adapter.forward_backward(1, forward_only=True).logprobs.shape == (12,)
    stop(office, trainer)
