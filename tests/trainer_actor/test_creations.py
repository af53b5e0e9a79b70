"""Which creations a tenant's quota holds back, what they are told, and for how long."""

import pytest
from loractl.bus.config import QuotasConfig
from loractl.bus.errors import InvalidRequest
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import CreateAdapter, Envelope, LoraSpec
from loractl.trainer_actor.creations import Belongings, Creations

ALICE, BOB = TenantId("alice"), TenantId("bob")


def creation(request: str, tenant: TenantId = ALICE) -> Envelope:
    body = CreateAdapter(name=request, lora=LoraSpec(rank=4, alpha=8.0, seed=0))
    return Envelope(request=RequestId(request), tenant=tenant, body=body)


def creations(adapters: int = 0, state_bytes: int = 0) -> Creations:
    return Creations(QuotasConfig(adapters=adapters, state_bytes=state_bytes, wait_s=60.0))


def test_without_quotas_there_is_always_room():
    assert creations().shortage(Belongings(10**6, 10**12), 10**9) == ""


def test_the_shortage_of_adapters_names_the_numbers():
    table = creations(adapters=4)

    assert table.shortage(Belongings(3, 0), 100) == ""
    assert table.shortage(Belongings(4, 0), 100) == (
        "this tenant has 4 of at most 4 adapters (quotas.adapters)"
    )


def test_the_shortage_of_bytes_names_the_numbers():
    table = creations(state_bytes=1_000_000)

    assert table.shortage(Belongings(1, 900_000), 100_000) == ""
    assert table.shortage(Belongings(1, 900_000), 100_001) == (
        "this tenant's training states take 900,000 of at most 1,000,000 bytes (quotas.state_bytes), "
        "and this one 100,001"
    )


def test_one_that_no_deletion_makes_room_for_is_refused_at_once():
    with pytest.raises(InvalidRequest, match=r"takes 1,001 bytes, and one tenant may have 1,000"):
        creations(state_bytes=1000).shortage(Belongings(0, 0), 1001)


def test_one_that_waits_is_told_the_way_out():
    held = creations(adapters=1).hold(creation("r1"), "this tenant has 1 of at most 1 adapters", 0.0)

    assert held.reason == (
        "this tenant has 1 of at most 1 adapters; it goes on when an adapter is deleted, within 60 s"
    )
    assert held.refusal == (
        "this tenant has 1 of at most 1 adapters, and 60 s brought no room: delete an adapter, then ask again"
    )


def test_they_wait_in_the_order_in_which_they_came_each_tenant_for_itself():
    table = creations(adapters=1)
    for request, tenant in (("r1", ALICE), ("r2", BOB), ("r3", ALICE)):
        table.hold(creation(request, tenant), "full", 0.0)

    assert [held.asker.request for held in table.waiting(ALICE)] == ["r1", "r3"]
    table.remove(table.waiting(ALICE)[0])
    assert [held.asker.request for held in table.waiting(ALICE)] == ["r3"]


def test_nobody_waits_for_longer_than_the_setting_says():
    table = creations(adapters=1)
    assert table.next_due() is None
    table.hold(creation("r1"), "full", 0.0)
    table.hold(creation("r2", BOB), "full", 10.0)

    assert table.next_due() == 60.0
    assert [held.asker.request for held in table.expired(60.0)] == ["r1"]
    assert table.next_due() == 70.0


def test_at_the_end_all_that_wait_are_handed_out():
    table = creations(adapters=1)
    table.hold(creation("r1"), "full", 0.0)

    assert [held.asker.request for held in table.take_all()] == ["r1"]
    assert table.next_due() is None
