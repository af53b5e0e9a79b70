"""What a turn holds, for queues and a device that the tests lay out."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    Envelope,
    ForwardBackward,
    OptimStep,
    RefuseOperation,
    SaveCheckpoint,
)
from loractl.trainer_actor.budgets import Room
from loractl.trainer_actor.costs import Costs
from loractl.trainer_actor.plan import Plan, Share, candidate
from loractl.trainer_actor.queues import Operation, Queued, pieces

COSTS = Costs(pass_ms=10.0, token_ms=0.1, copy_bytes_per_ms=10.0)
BUDGET = 100


def operation(kind: str, name: str, seq: int) -> tuple[Operation, tuple[int, ...]]:
    """ "f64+64": a forward_backward over two datums; "o" optim_step, "s" save, "r" refusal."""
    at = {"adapter": AdapterId(name), "lane": LaneId(name), "seq": seq}
    if kind == "o":
        return OptimStep(**at, learning_rate=0.1), ()  # type: ignore[arg-type]
    if kind == "s":
        return SaveCheckpoint(**at, name="x"), ()  # type: ignore[arg-type]
    if kind == "r":
        return RefuseOperation(**at, code="invalid_data", message="no"), ()  # type: ignore[arg-type]
    lengths = np.array([int(length) for length in kind[1:].split("+")])
    some = np.zeros(int(lengths.sum()), dtype=np.int64)
    none = np.zeros(0, dtype=np.float32)
    passing = ForwardBackward(
        **at,  # type: ignore[arg-type]
        lengths=lengths,
        tokens=some,
        targets=some,
        weights=none,
        old_logprobs=none,
        advantages=none,
        loss="cross_entropy",
    )
    return passing, pieces(lengths, BUDGET)


def queue(name: str, kinds: str, ran: int = 0) -> deque[Queued]:
    made: deque[Queued] = deque()
    for seq, kind in enumerate(kinds.split(), start=1):
        body, its_pieces = operation(kind, name, seq)
        asker = Envelope(request=RequestId(f"{name}{seq}"), tenant=LOCAL_TENANT, body=body)
        made.append(Queued(body, b"", [asker], its_pieces))
    if made:
        made[0].ran = ran
    return made


def room(
    on_device: Sequence[str] = (), *, slots: int = 4, device_bytes: int = 400, row_bytes: int = 100
) -> Room:
    resident = frozenset(map(AdapterId, on_device))
    return Room(
        slots=slots,
        device_bytes=device_bytes,
        on_device=resident,
        pinned=frozenset(),
        row_bytes_of={AdapterId(name): row_bytes for name in "abcdefgh"},
    )


class Table:
    """Adapters with work, in the order of their turns: the first leads."""

    def __init__(self, device: Room, begun: Sequence[str] = (), costs: Costs = COSTS, **queues: str) -> None:
        ran = {name: int(name in begun) for name in queues}
        self.candidates = [
            candidate(AdapterId(name), queue(name, kinds, ran[name]), BUDGET)
            for name, kinds in queues.items()
        ]
        self.device = device
        self.plan = Plan(device, costs, BUDGET, True, frozenset(map(AdapterId, begun)))

    def turn(self, eligible: str = "bcdefgh") -> tuple[str, str, str, str | None]:
        """(steps, late steps, members, single), each adapter with its count."""
        leader, *others = self.candidates
        lying = [each for each in others if each.adapter in self.device.on_device]
        turn = self.plan.turn(leader, lying, [each for each in others if each.adapter in eligible], lying)
        return (*(said(shares) for shares in (turn.steps, turn.late_steps, turn.members)), turn.single)


def said(shares: Sequence[Share]) -> str:
    return " ".join(f"{share.adapter}{share.count}" for share in shares)


def test_one_adapters_forward_backwards_share_a_pass_as_far_as_they_fit() -> None:
    assert Table(room("a"), a="f40 f40 f40 o").turn() == ("", "", "a2", None)


def test_light_operations_run_before_the_pass_behind_them() -> None:
    assert Table(room("a"), a="o r f10 o").turn() == ("a2", "", "a1", None)


def test_light_operations_of_all_on_the_device_run_in_one_batch() -> None:
    assert Table(room("ab"), a="o", b="o o f10").turn() == ("a1 b2", "", "", None)
    assert Table(room("ab"), a="f10", b="o o f10").turn() == ("b2", "", "a1 b1", None)


def test_an_adapter_that_is_brought_in_takes_its_light_operations_with_it() -> None:
    assert Table(room("a"), a="f10", b="o f10").turn() == ("", "b1", "a1 b1", None)


def test_what_is_no_pass_runs_by_itself() -> None:
    assert Table(room("ab"), a="s f10", b="f10").turn() == ("", "", "", "a")
    assert Table(room("ab"), a="f10", b="s f10").turn() == ("", "", "a1", None)


def test_a_pass_holds_no_more_positions_than_its_budget_but_one_datum_always() -> None:
    assert Table(room("abc"), a="f60", b="f50", c="f40").turn() == ("", "", "a1 c1", None)
    assert Table(room("ab"), a="f300", b="f10").turn() == ("", "", "a1", None)


def test_an_operation_longer_than_a_pass_runs_piece_by_piece() -> None:
    long = Table(room("ab"), a="f60+60+30 f10", b="f30")

    assert [each.pieces for each in long.candidates] == [(60,), (30,)]
    assert long.turn() == ("", "", "a1 b1", None)


def test_behind_an_operation_that_is_not_at_its_last_piece_nothing_of_its_adapter_runs() -> None:
    assert Table(room("a"), begun="a", a="f60+60+60 f10").turn() == ("", "", "a1", None)
    assert Table(room("a"), begun="a", a="f60+60 f10 o").turn() == ("", "", "a2", None)


def test_those_whose_turn_it_is_come_before_those_that_only_lie_there() -> None:
    assert Table(room("abc"), a="f10", b="f60", c="f60").turn(eligible="c") == ("", "", "a1 c1", None)


def test_an_idle_adapter_leaves_the_device_for_one_that_waits() -> None:
    assert Table(room("axyz"), a="f10", b="f10", c="f10").turn() == ("", "", "a1 b1 c1", None)


def test_a_neighbour_that_waits_leaves_only_if_that_costs_less_than_a_pass() -> None:
    cheap = Costs(pass_ms=10.0, token_ms=0.1, copy_bytes_per_ms=1000.0)

    assert Table(room("ab", slots=2), a="f10", b="s", c="f10").turn() == ("", "", "a1", None)
    assert Table(room("ab", slots=2), costs=cheap, a="f10", b="s", c="f10").turn() == ("", "", "a1 c1", None)


def test_a_pass_needs_no_more_slots_and_bytes_than_there_are() -> None:
    assert Table(room(slots=2), a="f10", b="f10", c="f10").turn() == ("", "", "a1 b1", None)
    assert Table(room(device_bytes=250), a="f10", b="f10", c="f10").turn() == ("", "", "a1 b1", None)


def test_what_has_begun_leaves_a_slot_to_those_who_are_short() -> None:
    table = Table(room("ab", slots=3), begun="a", a="f60+60", b="f60+60", c="f60")

    assert [table.plan.placeable(each) for each in table.candidates] == [True, True, True]
    crowded = Table(room("a", slots=2), begun="a", a="f60+60", b="f60+60", c="f60")
    assert [crowded.plan.placeable(each) for each in crowded.candidates] == [True, False, True]
    full = Table(room("a", slots=1), begun="a", a="f60+60", c="f60")
    assert [full.plan.placeable(each) for each in full.candidates] == [True, False]


def test_pieces_are_whole_datums_and_depend_on_nothing_else() -> None:
    assert pieces(np.array([40, 60, 1, 100, 300, 5]), 100) == (100, 1, 100, 300, 5)
    assert pieces(np.array([], dtype=np.int64), 100) == (0,)
    assert pieces(np.array([5, -1]), 100) == (0,)
