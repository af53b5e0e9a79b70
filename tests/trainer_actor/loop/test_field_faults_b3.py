"""Faults of other systems in order, idempotency and liveness; each test's name has its number.

`test_field_faults.py` says which tests elsewhere prove the others.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    Done,
    ForwardBackward,
    ListAdapters,
    LoraSpec,
    OptimStep,
    PassResult,
    SaveCheckpoint,
    StepResult,
)
from loractl.tests.trainer_actor.loop.harness import (
    VOCAB,
    Adapter,
    Office,
    checked,
    create,
    pass_over,
    same,
    start,
    stop,
)

Serve = Callable[..., Office]
SPEC = LoraSpec(rank=4, alpha=8.0, seed=1)
LIGHT = TenantId("light")


def over(adapter: Adapter, lengths: Sequence[int], seed: int = 0, **fields: object) -> ForwardBackward:
    """A forward_backward over random datums of these lengths."""
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    given = {
        "lengths": np.array(lengths),
        "tokens": draw.integers(0, VOCAB, total),
        "targets": draw.integers(0, VOCAB, total),
        "weights": draw.random(total).astype(np.float32),
    }
    return pass_over(0, **{**given, **fields}, **adapter.next())


def details(adapter: Adapter) -> AdapterDetails:
    [found] = adapter.office.ask(
        ListAdapters(name=adapter.details.name), AdapterList, adapter.tenant
    ).adapters
    return found


def trained(office: Office, name: str, **lora: object) -> Adapter:
    """With B other than zero, so that what it says depends on all it has seen."""
    adapter = create(office, name, **lora)  # type: ignore[arg-type]
    adapter.forward_backward(1)
    adapter.step()
    return adapter


@pytest.mark.parametrize("short", [1, 2, 15])
def test_b3_07_padding_counts_for_nothing_and_is_never_answered(serve: Serve, short: int) -> None:
    office = serve()
    plain, padded = trained(office, "plain"), trained(office, "padded")
    tokens = np.arange(short) % VOCAB
    datum = {"tokens": tokens, "targets": tokens, "weights": np.ones(short, np.float32)}
    more = {name: np.concatenate([array, array[:1].repeat(9)]) for name, array in datum.items()}
    more["weights"][short:] = 0

    answer = office.ask(over(plain, [short], **datum), PassResult)
    longer = office.ask(over(padded, [short, 9], **more), PassResult)
    steps = [adapter.step() for adapter in (plain, padded)]

    assert len(answer.logprobs) == len(answer.loss_terms) == short
    assert np.allclose(longer.logprobs[:short], answer.logprobs, rtol=0, atol=2e-6)
    assert not longer.loss_terms[short:].any()
    assert steps[0].grad_norm == pytest.approx(steps[1].grad_norm, rel=2e-6)
    assert (steps[0].tokens, steps[1].tokens) == (short, short + 9)


@pytest.mark.parametrize("pass_tokens", [0, 16])
def test_b3_08_answers_are_in_the_order_of_their_datums(serve: Serve, pass_tokens: int) -> None:
    office = serve(f"trainer.pass_tokens={pass_tokens}")
    adapter = trained(office, "poet")
    draw = np.random.default_rng(5)
    lengths = draw.integers(1, 24, 12)
    tokens = [draw.integers(0, VOCAB, length) for length in lengths]
    expected = [_scored(adapter, [each])[0] for each in tokens]

    for _ in range(3):
        order = draw.permutation(len(tokens))
        found = _scored(adapter, [tokens[index] for index in order])

        for index, logprobs in zip(order, found, strict=True):
            assert len(logprobs) == lengths[index]
            assert np.allclose(logprobs, expected[index], rtol=0, atol=5e-6)


def _scored(adapter: Adapter, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    """log p of each datum's tokens after themselves."""
    lengths = [len(each) for each in tokens]
    joined = np.concatenate(tokens)
    weights = np.ones(len(joined), np.float32)
    message = over(adapter, lengths, tokens=joined, targets=joined, weights=weights, forward_only=True)
    logprobs = adapter.office.ask(message, PassResult).logprobs
    return np.split(logprobs, np.cumsum(lengths)[:-1])


def test_b3_10_a_short_operation_ends_while_a_long_one_still_runs(serve: Serve) -> None:
    office = serve("trainer.pass_tokens=16")
    heavy, light = trained(office, "heavy"), create(office, "light", tenant=LIGHT)
    long = office.send(over(heavy, [16] * 40))
    short = office.send(over(light, [5]), LIGHT)

    checked(office.wait(long), PassResult)

    checked(office.wait(short), PassResult)
    assert office.arrived.index(short) < office.arrived.index(long)


@pytest.mark.parametrize("window", ["shared", "exclusive"])
def test_b3_11_a_light_tenant_waits_for_few_passes_of_a_heavy_one(serve: Serve, window: str) -> None:
    """Where windows are exclusive, until the heavy one's step."""
    office = serve("trainer.fuse=false", f"trainer.window={window}")
    heavy, light = trained(office, "heavy"), create(office, "light", tenant=LIGHT)
    waiting = []
    for seed in range(10):
        waiting += [office.send(over(heavy, [20, 20], seed)) for _ in range(3)]
        waiting.append(office.send(OptimStep(learning_rate=0.1, **heavy.next())))  # type: ignore[arg-type]
        waiting.append(office.send(SaveCheckpoint(name=f"at-{seed}", **heavy.next())))  # type: ignore[arg-type]
    mine = office.send(over(light, [5], forward_only=True), LIGHT)

    checked(office.wait(mine), PassResult)

    before = office.arrived.index(mine)
    for request in waiting:
        office.wait(request)
    # Some ran before ours had come in; behind it, a few more at most.
    assert before < len(office.arrived) - 20


def test_b3_14_eight_first_creations_at_one_time_all_succeed(open_office: Callable[..., Office]) -> None:
    office = open_office()
    trainer, _ = start(office)
    requests = [office.send(CreateAdapter(name=f"poet-{number}", lora=SPEC)) for number in range(8)]

    created = [checked(office.wait(request), AdapterCreated) for request in requests]

    adapters = [Adapter(office, each.details, each.lane) for each in created]
    running = [office.send(pass_over(1, **adapter.next())) for adapter in adapters]
    said = [checked(office.wait(request), PassResult).logprobs for request in running]
    assert len({adapter.id for adapter in adapters}) == 8
    assert all(same([said[0]], [other]) for other in said)
    stop(office, trainer)


def test_b3_17_what_others_do_moves_no_counter_of_an_idle_adapter(serve: Serve) -> None:
    office = serve("trainer.slots=2")
    idle = trained(office, "idle")
    idle.forward_backward(2)
    busy = [create(office, f"busy-{number}") for number in range(3)]
    before = details(idle)

    for number in range(3):
        requests = [office.send(pass_over(number, **each.next())) for each in busy]
        requests += [office.send(OptimStep(learning_rate=0.1, **each.next())) for each in busy]  # type: ignore[arg-type]
        for request in requests:
            office.wait(request)

    after = details(idle)
    assert (after.step, after.checkpoint_step, after.version) == (before.step, -1, 0)
    assert (after.usage.steps, after.usage.tokens, after.usage.passes) == (
        before.usage.steps,
        before.usage.tokens,
        before.usage.passes,
    )
    step = idle.step()
    assert (step.step, step.tokens) == (2, 12)


def test_b3_18_what_fails_moves_no_counter(serve: Serve) -> None:
    adapter = trained(serve(), "poet")
    adapter.forward_backward(2)
    huge = np.full(12, 3e38, np.float32)

    assert adapter.refused(lambda **where: pass_over(3, weights=huge, **where)).code == "not_finite"
    assert adapter.refused(OptimStep, learning_rate=-1.0).code == "invalid_request"
    assert adapter.refused(OptimStep, learning_rate=3e38).code == "invalid_request"

    assert details(adapter).step == 1
    step = adapter.step()
    assert (step.applied, step.step, step.tokens) == (True, 2, 12)


def test_b3_19_what_was_meant_for_an_adapter_never_reaches_the_next_of_its_name(serve: Serve) -> None:
    office = serve("trainer.slots=1")
    solo = create(office, "solo")
    solo.forward_backward(1)
    expected = solo.step()
    doomed = trained(office, "poet")
    under_way = [office.send(pass_over(seed, **doomed.next())) for seed in range(5)]
    gone = office.send(DeleteAdapter(adapter=doomed.id))
    born = office.send(CreateAdapter(name="poet", lora=solo.details.lora))
    late = [office.send(pass_over(seed, **doomed.next())) for seed in range(3)]

    assert isinstance(office.wait(gone), Done)
    created = checked(office.wait(born), AdapterCreated)
    heir = Adapter(office, created.details, created.lane)
    heir.lane, lane = doomed.lane, heir.lane
    stale = heir.refused(OptimStep, learning_rate=0.1)
    heir.lane, heir.seq = lane, 0

    assert {getattr(office.wait(each), "code", "done") for each in under_way} <= {"done", "aborted"}
    assert {office.wait(each).code for each in late} == {"adapter_not_found"}  # type: ignore[attr-defined]
    assert stale.code == "lane_lost"
    heir.forward_backward(1)
    assert same(heir.results, solo.results)
    assert heir.step() == expected
    assert isinstance(expected, StepResult)
    assert heir.id != doomed.id
