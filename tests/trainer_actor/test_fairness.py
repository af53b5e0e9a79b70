"""Whose turn it is, over tenants that take different amounts of the trainer's time."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from loractl.bus.ids import TenantId
from loractl.trainer_actor.fairness import FairTurns

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")


def everyone(_: TenantId) -> bool:
    return True


def serve(fair: FairTurns, costs: dict[TenantId, float], until_ms: float) -> Counter[TenantId]:
    """Always serve the first, until so much time was taken. Returns the time that each took."""
    taken: Counter[TenantId] = Counter()
    while taken.total() < until_ms:
        [first] = fair.first(1, everyone)
        fair.charge(first, costs[first])
        taken[first] += costs[first]  # type: ignore[assignment]
    return taken


def waiting(*tenants: TenantId, **settings: object) -> FairTurns:
    fair = FairTurns(**{"quantum_ms": 10.0, **settings})  # type: ignore[arg-type]
    for tenant in tenants:
        fair.enter(tenant)
    return fair


def test_tenants_that_came_first_go_first() -> None:
    assert waiting(B, A, C).first(3, everyone) == [B, A, C]
    assert waiting(B, A, C).first(2, everyone) == [B, A]


def test_who_was_served_goes_behind_those_who_were_not() -> None:
    fair = waiting(A, B, C)

    fair.charge(A, 1.0)

    assert fair.first(3, everyone) == [B, C, A]


def test_equal_tenants_get_equal_time_whatever_their_operations_cost() -> None:
    taken = serve(waiting(A, B), {A: 1.0, B: 300.0}, 30_000.0)

    assert abs(taken[A] - taken[B]) <= 310.0


def test_time_is_shared_by_weight() -> None:
    taken = serve(waiting(A, B, weights={A: 3.0}), {A: 7.0, B: 11.0}, 40_000.0)

    assert abs(taken[A] / taken[B] - 3.0) < 0.05


def test_a_higher_priority_goes_first_however_much_it_took() -> None:
    fair = waiting(A, B, priorities={B: 1.0})

    assert serve(fair, {A: 1.0, B: 50.0}, 1000.0)[A] == 0


def test_a_light_tenant_that_comes_while_heavy_ones_are_served_is_next() -> None:
    fair = waiting(A, B)
    serve(fair, {A: 500.0, B: 500.0}, 5000.0)

    fair.enter(C)

    assert fair.first(1, everyone) == [C]


def test_a_debt_outlives_its_tenants_absence_and_credit_does_not() -> None:
    fair = waiting(A, B)
    fair.charge(A, 100.0)

    assert fair.first(2, lambda tenant: tenant == B) == [B]
    fair.charge(B, 1.0)
    fair.enter(A)

    assert fair.first(2, everyone) == [B, A]
    assert fair.credit_ms(A) == -90.0
    assert fair.credit_ms(C) == 10.0


def test_a_tenant_that_rides_along_behind_a_higher_priority_takes_no_more_memory() -> None:
    fair = waiting(A, B, priorities={B: 1.0})

    for _ in range(20_000):
        fair.charge(A, 1.0)

    assert len(fair._queue) + len(fair._debts) < 2000
    assert fair.first(2, everyone) == [B, A]


def test_who_has_no_work_is_left_out_and_comes_back_when_it_has() -> None:
    fair = waiting(A, B)

    assert fair.first(2, lambda tenant: tenant == B) == [B]
    assert fair.first(2, everyone) == [B]
    fair.enter(A)

    assert set(fair.first(2, everyone)) == {A, B}


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0.01, 500.0)), max_size=200))
def test_nobody_who_waits_falls_behind_by_more_than_two_turns(costs: list[tuple[str, float]]) -> None:
    """Whoever is served, service differs by at most the largest cost and a round's earnings, each way."""
    tenants = [TenantId(name) for name in "abcde"]
    fair = waiting(*tenants)
    taken: Counter[TenantId] = Counter()

    for _, cost in costs:
        [first] = fair.first(1, everyone)
        fair.charge(first, cost)
        taken[first] += cost  # type: ignore[assignment]

    largest = max((cost for _, cost in costs), default=0.0)
    spread = max(taken[each] for each in tenants) - min(taken[each] for each in tenants)
    assert spread <= 2 * (largest + 10.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0.0, 100.0)), max_size=60))
def test_the_rank_sorts_as_the_order_does(moves: list[tuple[str, bool, float]]) -> None:
    fair = FairTurns(quantum_ms=10.0)
    for name, comes, cost in moves:
        if comes:
            fair.enter(TenantId(name))
        else:
            fair.charge(TenantId(name), cost)

    order = fair.first(3, everyone)

    assert order == sorted(order, key=fair.rank)
