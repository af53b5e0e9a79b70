"""Quotas, accounts and descriptions of adapters, through the trainer's loop; faults B3.12 and B3.13 by name."""

from collections.abc import Callable, Sequence

import pytest
from loractl.bus.errors import LoractlError
from loractl.bus.ids import LOCAL_TENANT, RequestId, TenantId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    Done,
    Failed,
    ListAdapters,
    ListTenants,
    LoraSpec,
    OptimStep,
    PassResult,
    TenantList,
    Usage,
)
from loractl.tests.trainer_actor.loop.harness import (
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
BOB = TenantId("bob")


def creations(office: Office, count: int, tenant: TenantId = LOCAL_TENANT) -> list[RequestId]:
    return [office.send(CreateAdapter(name=f"poet-{number}", lora=SPEC), tenant) for number in range(count)]


def listed(office: Office, tenant: TenantId = LOCAL_TENANT) -> AdapterList:
    return office.ask(ListAdapters(), AdapterList, tenant)


def described(adapter: Adapter) -> AdapterDetails:
    return next(
        each for each in listed(adapter.office, adapter.tenant).adapters if each.adapter == adapter.id
    )


def made(office: Office, requests: Sequence[RequestId]) -> list[Adapter]:
    answers = [checked(office.wait(request), AdapterCreated) for request in requests]
    return [Adapter(office, each.details, each.lane) for each in answers]


# --- creations at a cap --------------------------------------------------------------------------


def test_b3_12_of_parallel_creations_at_a_cap_exactly_as_many_succeed_and_the_next_after_a_deletion(
    serve: Serve,
) -> None:
    office = serve("quotas.adapters=3")
    requests = creations(office, 8)

    first = made(office, requests[:3])

    reason = (
        "this tenant has 3 of at most 3 adapters (quotas.adapters); it goes on when an adapter is deleted"
    )
    assert {office.wait_for_notice(request) for request in requests[3:]} == {f"{reason}, within 60 s"}
    assert len(listed(office).adapters) == 3
    for number in range(2):
        office.ask(DeleteAdapter(adapter=first[number].id), Done)
        (adapter,) = made(office, [requests[3 + number]])
        assert adapter.details.name == f"poet-{3 + number}"
        assert len(listed(office).adapters) == 3


def test_b3_12_the_cap_is_each_tenants_own_and_also_one_of_bytes(serve: Serve) -> None:
    size = create(serve(), "first").details.state_bytes
    office = serve(f"quotas.state_bytes={size}")

    requests = creations(office, 2)
    made(office, requests[:1])

    notice = office.wait_for_notice(requests[1])
    assert f"{size:,} of at most {size:,} bytes (quotas.state_bytes)" in notice
    made(office, creations(office, 1, BOB))
    wide = CreateAdapter(name="wide", lora=LoraSpec(rank=8, alpha=8.0, seed=1, train_unembed=True))
    error = office.refused(wide)
    assert (error.code, f"one tenant may have {size:,}" in error.message) == ("invalid_request", True)


def test_a_deletion_makes_room_for_as_many_as_fit_into_its_bytes(serve: Serve) -> None:
    small = create(serve(), "small").details.state_bytes
    office = serve(f"quotas.state_bytes={3 * small}")
    large = create(office, "large", rank=8, train_unembed=True)
    assert small < large.details.state_bytes <= 3 * small
    requests = creations(office, 5)
    assert "(quotas.state_bytes)" in office.wait_for_notice(requests[-1])

    office.ask(DeleteAdapter(adapter=large.id), Done)

    made(office, requests[:3])
    assert [each.name for each in listed(office).adapters] == ["poet-0", "poet-1", "poet-2"]


def test_a_creation_for_which_no_room_comes_is_refused_in_time_with_the_numbers(serve: Serve) -> None:
    office = serve("quotas.adapters=1", "quotas.wait_s=0.05")
    create(office, "first")

    error = office.refused(CreateAdapter(name="second", lora=SPEC))

    assert (error.code, error.retryable) == ("quota_exceeded", True)
    assert "has 1 of at most 1 adapters" in error.message
    assert [each.name for each in listed(office).adapters] == ["first"]


def test_what_can_never_be_created_is_refused_at_once_though_others_wait(serve: Serve) -> None:
    office = serve("quotas.adapters=1")
    first = create(office, "first")
    waiting = office.send(CreateAdapter(name="second", lora=SPEC))
    twin = office.send(CreateAdapter(name="second", lora=SPEC))

    assert office.refused(CreateAdapter(name="first", lora=SPEC)).code == "adapter_exists"
    assert office.refused(CreateAdapter(name="../up", lora=SPEC)).code == "invalid_name"
    office.ask(DeleteAdapter(adapter=first.id), Done)

    made(office, [waiting])
    refused = office.wait(twin)
    assert isinstance(refused, Failed)
    assert refused.code == "adapter_exists"


def test_creations_that_wait_when_the_trainer_stops_are_told(open_office: Callable[..., Office]) -> None:
    office = open_office("quotas.adapters=1")
    trainer, _ = start(office)
    create(office, "first")
    waiting = office.send(CreateAdapter(name="second", lora=SPEC))
    office.wait_for_notice(waiting)

    stop(office, trainer)

    answer = office.wait(waiting)
    assert isinstance(answer, Failed)
    assert answer.code == "actor_stopping"


def test_b3_13_a_creation_that_fails_takes_nothing_of_its_tenants_quota(serve: Serve) -> None:
    office = serve("quotas.adapters=2")
    first = create(office, "first")
    adapters, kept = office.layout.adapters, office.layout.root / "kept"
    adapters.rename(kept)
    adapters.write_text("a file where the directory should be")

    for _ in range(3):
        assert office.refused(CreateAdapter(name="second", lora=SPEC)).code == "storage_failed"
        assert office.refused(CreateAdapter(name="wide", lora=LoraSpec(rank=99, alpha=1.0, seed=1)))
    adapters.unlink()
    kept.rename(adapters)

    (second,) = made(office, [office.send(CreateAdapter(name="second", lora=SPEC))])
    assert {each.adapter for each in listed(office).adapters} == {first.id, second.id}
    assert {path.name for path in adapters.iterdir() if path.name.startswith("ad-")} == {first.id, second.id}


# --- descriptions and accounts -------------------------------------------------------------------


def test_an_adapter_runs_while_operations_of_it_are_under_way_and_says_what_they_wait_for(
    serve: Serve,
) -> None:
    adapter = create(serve(), "poet")
    idle = described(adapter)
    missing = adapter.next()
    behind = adapter.office.send(pass_over(2, **adapter.next()))
    adapter.office.wait_for_notice(behind)

    busy = described(adapter)

    assert (idle.phase, idle.queued, idle.waits_for) == ("registered", 0, "")
    assert (busy.phase, busy.queued) == ("running", 1)
    assert "operation 1 of this adapter has not arrived yet" in busy.waits_for
    adapter.office.ask(pass_over(1, **missing), PassResult)
    adapter.office.wait(behind)
    assert described(adapter).phase == "registered"


def test_what_an_adapter_took_is_told_and_the_tenants_sum_outlives_it(serve: Serve) -> None:
    office = serve()
    poet, other = create(office, "poet"), create(office, "other", tenant=BOB)
    poet.forward_backward(1)
    poet.forward_backward(2)
    poet.step()

    usage = described(poet).usage

    assert (usage.tokens, usage.operations, usage.passes, usage.steps) == (24, 3, 2, 1)
    assert (usage.shared_passes, usage.swaps) == (0, 1)
    assert usage.trainer_ms > 0
    assert listed(office).usage == usage
    assert described(other).usage == Usage()
    office.ask(DeleteAdapter(adapter=poet.id), Done)
    assert listed(office).usage.tokens == 24
    assert listed(office, BOB).usage == Usage()


def test_local_is_told_what_all_tenants_took_and_nobody_else_is(serve: Serve) -> None:
    office = serve()
    create(office, "idle")
    poet = create(office, "poet", tenant=BOB)
    poet.forward_backward(1)

    bob, local = office.ask(ListTenants(), TenantList).tenants

    assert (bob.tenant, bob.adapters, local.tenant, local.adapters) == (BOB, 1, LOCAL_TENANT, 1)
    assert bob.usage == listed(office, BOB).usage
    assert (bob.usage.tokens, local.usage) == (12, Usage())
    assert office.refused(ListTenants(), BOB).code == "access_denied"
    office.ask(DeleteAdapter(adapter=poet.id), Done, BOB)
    [bob, _] = office.ask(ListTenants(), TenantList).tenants
    assert (bob.adapters, bob.usage.tokens) == (0, 12)


def test_a_list_shows_only_ones_own(serve: Serve) -> None:
    office = serve()
    create(office, "mine")

    assert listed(office, BOB).adapters == ()


# --- deletions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
def test_deleting_an_adapter_on_the_device_with_operations_waiting_disturbs_no_other(
    serve: Serve, slots: int
) -> None:
    office = serve(f"trainer.slots={slots}")
    solo = create(office, "solo")
    others = [create(office, f"other-{number}") for number in range(2)]
    doomed = create(office, "doomed")
    doomed.forward_backward(9)  # on the device, its window open
    sent: dict[str, list[RequestId]] = {adapter.id: [] for adapter in (doomed, *others)}
    for data in range(1, 4):
        for adapter in (doomed, *others):
            sent[adapter.id].append(office.send(pass_over(data, **adapter.next())))
            step = OptimStep(learning_rate=0.05, **adapter.next())  # type: ignore[arg-type]
            sent[adapter.id].append(office.send(step))
    gone = office.send(DeleteAdapter(adapter=doomed.id))

    assert isinstance(office.wait(gone), Done)
    ends = [office.wait(request) for request in sent[doomed.id]]
    assert {end.code for end in ends if isinstance(end, Failed)} <= {"aborted"}

    for data in range(1, 4):
        solo.forward_backward(data)
        solo.step()
    for other in others:
        answers = [office.wait(request) for request in sent[other.id]]
        results = [each.logprobs for each in answers if isinstance(each, PassResult)]
        assert same(results, solo.results)
    assert described(others[0]).step == 3
    assert isinstance(refusal(office, doomed), LoractlError)


def refusal(office: Office, gone: Adapter) -> LoractlError:
    error = office.refused(pass_over(1, **gone.next()))
    assert error.code == "adapter_not_found"
    return error
