"""Trainer time and the rest, split between those who took it."""

import pytest
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.messages import Usage
from loractl.trainer_actor.accounts import Accounts, PassShare

A, B, C = (AdapterId(f"ad-{name}") for name in "abc")
ALICE, BOB = TenantId("alice"), TenantId("bob")


def test_a_pass_is_split_by_positions_and_counts_as_shared_for_all_who_had_part():
    accounts = Accounts()

    charged = accounts.pass_ran([PassShare(A, ALICE, 30), PassShare(B, BOB, 10)], 8.0)

    assert charged == {ALICE: 6.0, BOB: 2.0}
    assert accounts.of(A) == Usage(trainer_ms=6.0, tokens=30, operations=1, passes=1, shared_passes=1)
    assert accounts.of_tenant(BOB) == Usage(
        trainer_ms=2.0, tokens=10, operations=1, passes=1, shared_passes=1
    )


def test_a_pass_of_one_adapter_is_not_shared_however_many_operations_it_ran():
    accounts = Accounts()

    accounts.pass_ran([PassShare(A, ALICE, 3), PassShare(A, ALICE, 5)], 8.0)

    assert accounts.of(A) == Usage(trainer_ms=8.0, tokens=8, operations=2, passes=1)


def test_an_operation_of_several_passes_counts_once():
    accounts = Accounts()

    accounts.pass_ran([PassShare(A, ALICE, 4, ended=False)], 1.0)
    accounts.pass_ran([PassShare(A, ALICE, 2, ended=True)], 1.0)

    assert (accounts.of(A).operations, accounts.of(A).passes) == (1, 2)


def test_a_pass_that_two_adapters_of_a_tenant_shared_is_one_pass_of_the_tenant():
    accounts = Accounts()

    charged = accounts.pass_ran([PassShare(A, ALICE, 1), PassShare(B, ALICE, 1)], 4.0)

    assert charged == {ALICE: 4.0}
    assert accounts.of_tenant(ALICE).passes == accounts.of_tenant(ALICE).shared_passes == 1


def test_a_pass_without_positions_is_split_evenly():
    charged = Accounts().pass_ran([PassShare(A, ALICE, 0), PassShare(B, BOB, 0)], 4.0)

    assert charged == {ALICE: 2.0, BOB: 2.0}


def test_steps_other_operations_and_moved_bytes_are_counted_each_for_itself():
    accounts = Accounts()

    assert accounts.stepped(A, ALICE, 1.5) == {ALICE: 1.5}
    assert accounts.did(A, ALICE, 0.5) == {ALICE: 0.5}
    accounts.moved(A, ALICE, 1000, loaded=True)
    accounts.moved(A, ALICE, 400, loaded=False)

    assert accounts.of(A) == Usage(trainer_ms=2.0, operations=2, steps=1, swaps=1, swapped_bytes=1400)
    assert accounts.of_tenant(ALICE) == accounts.of(A)


def test_time_on_the_disk_is_a_figure_of_its_own_that_nobodys_turn_pays_for():
    accounts = Accounts()

    accounts.kept_disk(A, ALICE, 40.0)

    assert accounts.of(A) == accounts.of_tenant(ALICE) == Usage(disk_ms=40.0)
    assert accounts.tenants() == {ALICE: Usage(disk_ms=40.0)}


def test_whoever_is_brought_to_the_device_is_charged_for_it():
    accounts = Accounts()

    assert accounts.placed(A, ALICE, 2.5) == {ALICE: 2.5}
    assert accounts.of(A) == Usage(trainer_ms=2.5)


def test_a_deleted_adapter_stays_in_its_tenants_sum():
    accounts = Accounts()
    accounts.did(A, ALICE, 3.0)
    accounts.did(B, ALICE, 4.0)

    accounts.forget(A)

    assert accounts.of(A) == Usage()
    assert accounts.of_tenant(ALICE).trainer_ms == 7.0


def test_what_is_charged_is_what_was_measured():
    accounts = Accounts()

    charged = accounts.pass_ran([PassShare(A, ALICE, 7), PassShare(B, BOB, 11), PassShare(C, BOB, 13)], 123.4)

    assert sum(charged.values()) == pytest.approx(123.4)
    total = accounts.of(A).trainer_ms + accounts.of(B).trainer_ms + accounts.of(C).trainer_ms
    assert total == pytest.approx(123.4)
