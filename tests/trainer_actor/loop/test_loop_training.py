"""The trainer's first promise: an adapter trains among any neighbours as it trains alone, bit for bit."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loractl.bus.messages import (
    DeleteAdapter,
    Done,
    ForwardBackward,
    OptimStep,
    PassResult,
    StepResult,
)
from loractl.tests.trainer_actor.loop.harness import Adapter, Office, checked, create, pass_over, same

Serve = Callable[..., Office]
KINDS = {"a": 2, "b": 4, "c": 8}  # name and rank
names = itertools.count()


def train(adapter: Adapter, data: int) -> None:
    """One window: two members, then the commit."""
    adapter.forward_backward(data)
    adapter.forward_backward(data + 1)
    adapter.step(rate=0.03, weight_decay=0.1, grad_clip_norm=1.0)


def alone(serve: Serve, rank: int, windows: int, seed: int) -> list[np.ndarray]:
    adapter = create(serve(), "alone", rank=rank)
    for window in range(windows):
        train(adapter, seed + 10 * window)
    adapter.forward_backward(999)
    return adapter.results


@pytest.fixture
def crowded(serve: Serve) -> Office:
    return serve("trainer.slots=2")


def test_three_adapters_interleaved_in_two_slots_end_bit_equal_to_each_alone(
    crowded: Office, serve: Serve
) -> None:
    adapters = [create(crowded, name, rank=rank) for name, rank in KINDS.items()]

    for window in range(3):
        for member in ("first", "second", "step"):
            for index, adapter in enumerate(adapters):
                match member:
                    case "first":
                        adapter.forward_backward(100 * index + 10 * window)
                    case "second":
                        adapter.forward_backward(100 * index + 10 * window + 1)
                    case _:
                        adapter.step(rate=0.03, weight_decay=0.1, grad_clip_norm=1.0)
    for adapter in adapters:
        adapter.forward_backward(999)

    for index, (adapter, rank) in enumerate(zip(adapters, KINDS.values(), strict=True)):
        assert same(adapter.results, alone(serve, rank, 3, 100 * index))


def test_no_order_of_two_adapters_operations_changes_either(serve: Serve) -> None:
    office = serve("trainer.slots=1")
    expected = {}
    for who in (0, 1):
        solo = create(office, f"solo-{who}", rank=4)
        solo.forward_backward(who)
        solo.forward_backward(who + 10)
        solo.step()
        expected[who] = [*solo.results, solo.forward_backward(77).logprobs]

    for round_, order in enumerate(sorted(set(itertools.permutations([0, 0, 0, 1, 1, 1])))):
        pair = [create(office, f"{round_}-{who}", rank=4) for who in (0, 1)]
        done = [0, 0]
        for who in order:
            match done[who]:
                case 0:
                    pair[who].forward_backward(who)
                case 1:
                    pair[who].forward_backward(who + 10)
                case _:
                    pair[who].step()
            done[who] += 1
        for who, adapter in enumerate(pair):
            adapter.forward_backward(77)
            assert same(adapter.results, expected[who]), order
            office.ask(DeleteAdapter(adapter=adapter.id), Done)


def test_whatever_order_a_lane_arrives_in_it_runs_in_the_order_of_its_numbers(serve: Serve) -> None:
    office = serve()

    def operations(adapter: Adapter) -> list[ForwardBackward | OptimStep]:
        return [
            pass_over(1, **adapter.next()),
            OptimStep(learning_rate=0.05, **adapter.next()),
            pass_over(2, **adapter.next()),
            OptimStep(learning_rate=0.02, **adapter.next()),
            pass_over(3, **adapter.next()),
        ]

    def run(order: list[int]) -> list[np.ndarray]:
        adapter = create(office, f"order-{next(names)}")
        planned = operations(adapter)
        requests = {index: office.send(planned[index]) for index in order}
        answers = [office.wait(requests[index]) for index in range(5)]
        office.ask(DeleteAdapter(adapter=adapter.id), Done)
        return [answer.logprobs for answer in answers if isinstance(answer, PassResult)]

    expected = run([0, 1, 2, 3, 4])

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.permutations(range(5)))
    def any_order(order: list[int]) -> None:
        assert same(run(order), expected)

    any_order()


def test_losses_add_up_over_calls_as_over_datums(serve: Serve) -> None:
    office = serve()
    parts, whole = create(office, "parts"), create(office, "whole")
    first, second = pass_over(1, **parts.next()), pass_over(2, **parts.next())
    for each in (first, second):
        office.ask(each, PassResult)
    joined = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("lengths", "tokens", "targets", "weights")
    }
    office.ask(replace(first, **joined, **whole.next()), PassResult)

    one, other = parts.step(), whole.step()

    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert one.tokens == other.tokens == 24


def test_forward_only_leaves_no_trace(serve: Serve) -> None:
    office = serve()
    plain, looked_at = create(office, "plain"), create(office, "looked-at")

    for adapter in (plain, looked_at):
        adapter.forward_backward(1)
        if adapter is looked_at:
            adapter.forward_backward(5, forward_only=True)
            adapter.results.pop()
        adapter.step()
        adapter.forward_backward(2)

    assert same(plain.results, looked_at.results)


def test_bad_data_leaves_the_gradients_as_they_were(serve: Serve) -> None:
    office = serve()
    plain, disturbed = create(office, "plain"), create(office, "disturbed")

    for adapter in (plain, disturbed):
        adapter.forward_backward(1)
        if adapter is disturbed:
            bad_token = np.full(12, 10_000)
            huge = np.full(12, 3e38, np.float32)
            assert adapter.refused(partial(pass_over, 2, tokens=bad_token)).code == "invalid_data"
            assert adapter.refused(partial(pass_over, 2, weights=huge)).code == "not_finite"
            unknown = {"no_such_setting": 1.0}
            assert adapter.refused(partial(pass_over, 2, loss_config=unknown)).fault == "user"
        adapter.step()
        adapter.forward_backward(3)

    assert same(plain.results, disturbed.results)


def test_a_step_behind_a_member_that_failed_applies_the_others(serve: Serve) -> None:
    office = serve()
    adapter = create(office, "poet")
    bad = np.full(12, -1)
    requests = [
        office.send(pass_over(1, **adapter.next())),
        office.send(pass_over(2, tokens=bad, **adapter.next())),
        office.send(OptimStep(learning_rate=0.1, **adapter.next())),
    ]

    answers = [office.wait(request) for request in requests]

    assert answers[1].code == "invalid_data"  # type: ignore[attr-defined]
    step = checked(answers[2], StepResult)
    assert (step.applied, step.step, step.tokens) == (True, 1, 12)


def test_a_step_without_any_gradient_is_an_exact_no_op(serve: Serve) -> None:
    office = serve()
    plain, stepped = create(office, "plain"), create(office, "stepped")

    for adapter in (plain, stepped):
        adapter.forward_backward(1)
        adapter.step(weight_decay=0.5)
        if adapter is stepped:
            nothing = adapter.step(weight_decay=0.5)
            assert (nothing.applied, nothing.step, nothing.grad_norm) == (False, 1, 0.0)
        adapter.forward_backward(2)
        assert adapter.step(weight_decay=0.5).step == 2
        adapter.forward_backward(3)

    assert same(plain.results, stepped.results)


def test_a_step_with_settings_out_of_range_is_refused_and_keeps_the_gradients(serve: Serve) -> None:
    adapter = create(serve(), "poet")
    adapter.forward_backward(1)

    error = adapter.refused(OptimStep, learning_rate=float("nan"))

    assert error.code == "invalid_request"
    assert adapter.step().applied


def test_a_slot_passes_nothing_on_to_its_next_adapter(serve: Serve) -> None:
    office = serve("trainer.slots=1")
    solo = create(office, "solo")
    train(solo, 5)
    solo.forward_backward(999)

    live = create(office, "live")
    live.forward_backward(1)
    live.step()
    live.forward_backward(2)  # gradients and moments lie in the slot when it goes
    office.ask(DeleteAdapter(adapter=live.id), Done)
    heir = create(office, "live")
    train(heir, 5)
    heir.forward_backward(999)

    assert same(heir.results, solo.results)


def test_adapters_that_start_from_other_seeds_differ_and_from_the_same_seed_agree(serve: Serve) -> None:
    office = serve()
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        adapter = create(office, name, seed=seed)
        adapter.forward_backward(1)
        adapter.step()
        results.append([adapter.forward_backward(2).logprobs])

    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_composition_that_cannot_have_been_changes_nothing(serve: Serve) -> None:
    first, second = (create(serve(), name) for name in ("plain", "damaged"))

    first.forward_backward(1)
    second.forward_backward(1, composition=np.full(9, 0xC1, dtype=np.uint8))

    assert same(first.results, second.results)
    assert first.step() == second.step()
