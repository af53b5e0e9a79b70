"""When what runs: many tenants over the real queues, with a clock and a device that the tests lay out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from loractl.bus.config import Config, FairnessConfig, TrainerConfig
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import Bytes, Done, Envelope, ForwardBackward, OptimStep, SaveCheckpoint
from loractl.trainer_actor.budgets import Room
from loractl.trainer_actor.compositions import PassShape, RunShape, composition, packed_seats
from loractl.trainer_actor.costs import Costs
from loractl.trainer_actor.lanes import Lanes
from loractl.trainer_actor.plan import Turn
from loractl.trainer_actor.queues import Operation
from loractl.trainer_actor.schedule import Schedule, Wait

BUDGET = 100
COSTS = Costs(pass_ms=10.0, token_ms=1.0, copy_bytes_per_ms=1e9)


@dataclass
class Floor:
    """A trainer without an engine: turns take what the costs say, on a clock of its own."""

    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(gather_s=0.0, slots=8))
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    now: float = 0.0
    resident: list[AdapterId] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    served_ms: dict[str, float] = field(default_factory=dict)
    disk_is_free: bool = True
    suspects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.lanes = Lanes(
            gap_timeout_s=100.0,
            kept_bytes=1 << 30,
            pass_tokens=BUDGET,
            max_ahead=1 << 20,
            suspects=[(TenantId(each[0]), RequestId(each)) for each in self.suspects],
        )
        self.schedule = Schedule(
            Config(trainer=self.trainer, fairness=self.fairness),
            costs=COSTS,
            pass_tokens=BUDGET,
            queues=self.lanes.queues,
        )
        self.seqs: dict[str, int] = {}

    def send(self, name: str, *kinds: int | str) -> None:
        """A number is a forward_backward over so many positions, cut into datums of at most 50; "o" an
        optim_step, "s" a save. An adapter belongs to the tenant of its name's first letter."""
        if name not in self.seqs:
            self.lanes.open(AdapterId(name), LaneId(name))
        for kind in kinds:
            self.seqs[name] = seq = self.seqs.get(name, 0) + 1
            body = operation(name, seq, kind)
            envelope = Envelope(request=RequestId(f"{name}{seq}"), tenant=TenantId(name[0]), body=body)
            self.lanes.admit(envelope, body, f"{name}{seq}".encode(), self.now)

    def turn(self) -> str:
        """Run the next turn. Returns the members of its pass, or what else there was."""
        decision = self.schedule.next_turn(self.room(), self.now, disk_is_free=self.disk_is_free)
        if not isinstance(decision, Turn):
            return f"wait {decision.until:g}" if isinstance(decision, Wait) else ""
        return self.carry_out(decision)

    def carry_out(self, decision: Turn) -> str:
        for share in (*decision.steps, *decision.late_steps):
            for _ in range(share.count):
                self.finish(share.adapter)
        for share in decision.members:
            self.place(share.adapter)
        ms = COSTS.pass_of(decision.tokens) if decision.members else 0.0
        self.now += ms / 1000
        members = [str(share.adapter) for share in decision.members]
        for share in decision.members:
            self.advance(share.adapter, share.count, ms / len(members))
        return " ".join(members) or "steps"

    def turns(self, count: int) -> list[str]:
        return [self.turn() for _ in range(count)]

    def advance(self, adapter: AdapterId, count: int, ms: float) -> None:
        heads = list(self.lanes.queues.of(adapter))[:count]
        tenant = heads[0].tenant
        self.served_ms[tenant] = self.served_ms.get(tenant, 0.0) + ms
        self.schedule.charge({tenant: ms})
        for queued in heads:
            queued.ran += 1
            if not queued.left:
                self.finish(adapter)
        self.lanes.queues.rotate(adapter)

    def finish(self, adapter: AdapterId) -> None:
        queued = self.lanes.queues.of(adapter)[0]
        self.lanes.finish(queued, Done())
        self.ended.append(f"{adapter}{queued.operation.seq}")
        opens = isinstance(queued.operation, ForwardBackward)
        self.schedule.ran(adapter, open_window=opens, now=self.now)

    def begun(self, adapter: AdapterId) -> bool:
        queue = self.lanes.queues.of(adapter)
        return bool(queue) and queue[0].ran > 0

    def place(self, adapter: AdapterId) -> None:
        if adapter in self.resident:
            self.resident.remove(adapter)
        self.resident = [*self.resident, adapter][-self.trainer.slots :]

    def room(self) -> Room:
        return Room(
            slots=self.trainer.slots,
            device_bytes=1 << 30,
            on_device=frozenset(self.resident),
            pinned=frozenset(name for name in self.resident if self.begun(name)),
            row_bytes_of={AdapterId(name): 1000 for name in self.seqs},
        )


def operation(name: str, seq: int, kind: int | str) -> Operation:
    at = {"adapter": AdapterId(name), "lane": LaneId(name), "seq": seq}
    if kind == "s":
        return SaveCheckpoint(**at, name=f"at-{seq}")  # type: ignore[arg-type]
    if isinstance(kind, str):
        return OptimStep(**at, learning_rate=0.1)  # type: ignore[arg-type]
    datums, rest = divmod(kind, 50)
    some, none = np.zeros(kind, dtype=np.int64), np.zeros(0, dtype=np.float32)
    return ForwardBackward(
        **at,  # type: ignore[arg-type]
        lengths=np.array([50] * datums + [rest] * bool(rest)),
        tokens=some,
        targets=some,
        weights=none,
        old_logprobs=none,
        advantages=none,
        loss="cross_entropy",
    )


def test_nothing_to_do_is_no_turn() -> None:
    assert Floor().turn() == ""


def test_all_tenants_that_wait_share_a_pass() -> None:
    floor = Floor()
    for name in ("a", "b", "c"):
        floor.send(name, 16, "o")

    assert floor.turns(3) == ["a b c", "steps", ""]
    assert floor.ended == ["a1", "b1", "c1", "a2", "b2", "c2"]


def test_without_fusing_each_pass_is_one_adapters() -> None:
    floor = Floor(TrainerConfig(fuse=False, gather_s=0.0))
    for name in ("a", "b"):
        floor.send(name, 16, 16)

    assert floor.turns(5) == ["a", "b", "a", "b", ""]


def test_operations_of_an_adapter_run_in_their_order_whatever_shares_their_passes() -> None:
    floor = Floor()
    for name in ("a", "b", "c1", "c2"):
        floor.send(name, 120, "o", 16, 16, "o", 230, "o")

    while floor.turn():
        pass

    for name in ("a", "b", "c1", "c2"):
        assert [each for each in floor.ended if each[:-1] == name] == [f"{name}{seq}" for seq in range(1, 8)]


def test_a_light_tenant_waits_for_one_pass_of_a_heavy_one() -> None:
    floor = Floor()
    floor.send("a", 5000)
    floor.send("b", 5000)
    floor.turns(10)

    floor.send("c", 16)

    assert "c" in floor.turn().split()


def test_a_tenant_gets_no_more_for_having_more_adapters() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0, slots=64))
    for index in range(20):
        floor.send(f"a{index:02}", *([50] * 200))
    floor.send("b", *([50] * 2000))

    floor.turns(400)

    assert 0.9 < floor.served_ms["a"] / floor.served_ms["b"] < 1.1


def test_a_tenants_adapters_take_turns() -> None:
    floor = Floor(TrainerConfig(fuse=False, gather_s=0.0))
    for name in ("a1", "a2", "a3"):
        floor.send(name, 50, 50)

    assert floor.turns(6) == ["a1", "a2", "a3"] * 2


def test_weights_share_the_trainers_time() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0), FairnessConfig(weights="a=3"))
    for name in ("a", "b"):
        floor.send(name, *([100] * 500))

    floor.turns(400)

    assert 2.8 < floor.served_ms["a"] / floor.served_ms["b"] < 3.2


def test_a_higher_priority_goes_first() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0), FairnessConfig(priorities="b=1"))
    for name in ("a", "b"):
        floor.send(name, *([100] * 3))

    assert floor.turns(6) == ["b"] * 3 + ["a"] * 3


def test_a_pass_waits_a_little_for_those_who_shared_the_one_before() -> None:
    floor = Floor(TrainerConfig(gather_s=0.01))
    floor.send("a", 16)
    floor.send("b", 16)
    assert floor.turn() == "a b"

    floor.send("a", 16)
    assert floor.turn() == f"wait {floor.now + COSTS.pass_ms / 1000 / 4:g}"
    floor.send("b", 16)

    assert floor.turn() == "a b"


def test_it_waits_no_longer_than_that() -> None:
    floor = Floor(TrainerConfig(gather_s=0.01))
    floor.send("a", 16)
    floor.send("b", 16)
    floor.turn()

    floor.send("a", 16)
    floor.turn()
    floor.now += COSTS.pass_ms / 1000 / 4

    assert floor.turn() == "a"


def test_a_client_that_goes_on_sending_light_operations_holds_nobody_up() -> None:
    floor = Floor(TrainerConfig(gather_s=0.01))
    floor.send("a", 16)
    floor.send("b", 16)
    floor.turn()
    floor.send("a", 16)

    said = []
    for _ in range(20):
        floor.send("b", "o")
        said.append(floor.turn())
        floor.now += 0.001

    assert "a" in said[:7]


def test_two_who_wait_for_each_answer_before_they_go_on_come_to_share_their_passes() -> None:
    floor = Floor(TrainerConfig(gather_s=0.01))
    floor.send("a", 16)
    floor.turn()
    floor.send("a", "o")
    floor.send("b", 16)

    assert floor.turn() == "steps"
    assert floor.turn().startswith("wait")
    floor.send("a", 16)

    assert floor.turn() == "b a"


def test_an_exclusive_window_is_served_alone_until_its_step() -> None:
    floor = Floor(TrainerConfig(window="exclusive"))
    floor.send("a", 16, 16, "o", 16, "o")
    floor.send("b", 16, "o")

    while floor.turn():
        pass

    assert floor.ended == ["a1", "a2", "a3", "b1", "b2", "a4", "a5"]


def test_an_exclusive_window_whose_client_is_silent_is_left_after_the_lease() -> None:
    floor = Floor(TrainerConfig(window="exclusive", window_lease_s=30.0))
    floor.send("a", 16)
    floor.turn()
    floor.send("b", 16, "o")

    said = floor.turn()
    assert said == f"wait {floor.now + 30.0:g}"
    floor.now += 30.0

    assert floor.turns(2) == ["b", "steps"]


def test_a_long_operation_in_an_exclusive_window_is_not_interrupted() -> None:
    floor = Floor(TrainerConfig(window="exclusive"))
    floor.send("a", 220, "o")
    floor.turn()
    floor.send("b", 16, "o")

    while floor.turn():
        pass

    assert floor.ended == ["a1", "a2", "b1", "b2"]


def test_a_deleted_adapter_ends_its_lease_and_is_not_waited_for() -> None:
    floor = Floor(TrainerConfig(window="exclusive", window_lease_s=30.0))
    floor.send("a", 16)
    floor.turn()
    floor.send("b", 16)

    floor.schedule.gone(AdapterId("a"))

    assert floor.turn() == "b"


def test_what_comes_next_is_known_before_it_runs() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0, slots=2))
    for name in ("a", "b", "c"):
        floor.send(name, 60)
    turn = floor.schedule.next_turn(replace(floor.room(), slots=2), 0.0)

    assert isinstance(turn, Turn)
    assert floor.schedule.upcoming(turn) == ["b", "c"]


def test_of_thousands_that_wait_each_gets_its_turn() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0, slots=8))
    for index in range(2000):
        floor.send(chr(0x4E00 + index), 16)

    served = set()
    for _ in range(50):
        served.update(floor.turn().split())

    assert len(served) == 50 * (BUDGET // 16)


def test_a_pass_does_not_wait_behind_a_hundred_who_wait_for_the_disk() -> None:
    floor = Floor(disk_is_free=False)
    for index in range(100):
        floor.send(f"a{index}", "s")
        floor.send(chr(0x4E00 + index), "s")
    assert floor.turn() == ""

    floor.send("b", 16)

    assert floor.turns(2) == ["b", ""]


def test_a_priority_does_not_wait_for_those_between_it_and_whoever_holds_its_place() -> None:
    floor = Floor(TrainerConfig(gather_s=0.0, slots=2), FairnessConfig(priorities="h=2, m=1"))
    floor.send("l", 500)
    assert floor.turn() == "l"
    floor.send("h", 500)
    floor.send("m", *[100] * 20)

    assert floor.turns(5) == ["l"] * 4 + ["h"]


def again(*numbers: int, runs: Sequence[int] = (30, 30), place: int = 0) -> Bytes:
    """Of an operation that ran in passes of these numbers, each time as run `place` of them."""
    shapes = [RunShape((positions,), 0, 1, True, False, ()) for positions in runs]
    return composition([packed_seats(PassShape(number, tuple(shapes)))[place] for number in numbers])


def resend(floor: Floor, name: str, seq: int, noted: Bytes) -> None:
    """What ran before comes again."""
    if seq == 1:
        floor.lanes.open(AdapterId(name), LaneId(name))
    floor.seqs[name] = seq
    body = replace(operation(name, seq, 30), composition=noted)
    envelope = Envelope(request=RequestId(f"{name}{seq}"), tenant=TenantId(name[0]), body=body)
    floor.lanes.admit(envelope, body, f"{name}{seq}".encode(), floor.now)


def test_who_was_in_a_pass_together_is_when_it_runs_again_and_nobody_else() -> None:
    floor = Floor()
    floor.send("c", 20)
    resend(floor, "a", 1, again(7))
    resend(floor, "b", 1, again(7, place=1))
    resend(floor, "d", 1, again(7, runs=(30, 60)))

    assert sorted(sorted(turn.split()) for turn in floor.turns(3)) == [["a", "b"], ["c"], ["d"]]


def test_passes_run_again_in_the_order_in_which_they_ran_so_that_all_of_each_are_there() -> None:
    floor = Floor()
    resend(floor, "b", 1, again(3))
    resend(floor, "b", 2, again(5, place=1))
    resend(floor, "a", 1, again(5))
    resend(floor, "a", 2, again(8))

    assert [sorted(turn.split()) for turn in floor.turns(3)] == [["b"], ["a", "b"], ["a"]]
