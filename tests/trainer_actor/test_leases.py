"""The exclusive window: one adapter alone, until its step or until its client is silent for too long."""

from loractl.bus.ids import AdapterId
from loractl.trainer_actor.leases import Lease

A, B = AdapterId("a"), AdapterId("b")


def test_an_open_window_holds_the_trainer_until_its_step() -> None:
    lease = Lease(exclusive=True, lease_s=10.0)

    lease.ran(A, open_window=True, now=0.0)
    assert lease.held(9.0) == A
    lease.ran(A, open_window=False, now=9.0)

    assert lease.held(9.0) is None


def test_every_operation_begins_the_lease_anew() -> None:
    lease = Lease(exclusive=True, lease_s=10.0)
    lease.ran(A, open_window=True, now=0.0)

    lease.ran(A, open_window=True, now=8.0)

    assert lease.held(17.0) == A


def test_a_client_that_is_silent_loses_the_turn_and_may_take_it_again() -> None:
    lease = Lease(exclusive=True, lease_s=10.0)
    lease.ran(A, open_window=True, now=0.0)

    assert lease.held(10.0) is None
    lease.ran(B, open_window=True, now=11.0)
    assert lease.held(12.0) == B
    lease.ran(B, open_window=False, now=13.0)
    lease.ran(A, open_window=True, now=14.0)

    assert lease.held(15.0) == A


def test_another_adapters_operation_takes_no_lease_away() -> None:
    lease = Lease(exclusive=True, lease_s=10.0)
    lease.ran(A, open_window=True, now=0.0)

    lease.ran(B, open_window=False, now=1.0)
    lease.ran(B, open_window=True, now=2.0)

    assert lease.held(3.0) == A


def test_a_deleted_adapter_holds_nothing() -> None:
    lease = Lease(exclusive=True, lease_s=10.0)
    lease.ran(A, open_window=True, now=0.0)

    lease.gone(A)

    assert lease.held(1.0) is None


def test_shared_windows_know_no_lease() -> None:
    lease = Lease(exclusive=False, lease_s=10.0)

    lease.ran(A, open_window=True, now=0.0)

    assert lease.held(0.0) is None
