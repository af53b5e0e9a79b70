"""The ledger: one run and one outcome per request id."""

import math

import pytest
from loractl.bus.errors import RequestConflict
from loractl.bus.ids import RequestId, TenantId
from loractl.daemon.decisions import ClientId
from loractl.daemon.ledger import Ended, Ledger, Ticket
from loractl.daemon.routing import Destination

KEY = (TenantId("alice"), RequestId("r1"))
OTHER = (TenantId("alice"), RequestId("r2"))


def open_ticket(ledger: Ledger, key=KEY, digest: bytes = b"d") -> Ticket:
    return ledger.open(key, "echo", digest, Destination.ANY, [b"head"], ClientId(b"ann"))


def test_a_new_request_is_unknown():
    assert Ledger(1000, 60.0).known(KEY, b"d") is None


def test_a_request_under_way_is_found_again():
    ledger = Ledger(1000, 60.0)

    ticket = open_ticket(ledger)

    assert ledger.known(KEY, b"d") is ticket
    assert len(ledger) == 1


def test_an_ended_request_keeps_its_first_outcome():
    ledger = Ledger(10_000, 60.0)
    ticket = open_ticket(ledger)

    ledger.end(ticket, [b"answer"], keep=True, now=0.0)

    known = ledger.known(KEY, b"d")
    assert isinstance(known, Ended)
    assert list(known.outcome) == [b"answer"]
    assert len(ledger) == 0


def test_an_outcome_that_is_not_kept_lets_the_request_run_again():
    ledger = Ledger(10_000, 60.0)

    ledger.end(open_ticket(ledger), [b"answer"], keep=False, now=0.0)

    assert ledger.known(KEY, b"d") is None


@pytest.mark.parametrize("ended", [False, True])
def test_the_same_id_with_another_payload_is_refused(ended: bool):
    ledger = Ledger(10_000, 60.0)
    ticket = open_ticket(ledger)
    if ended:
        ledger.end(ticket, [b"answer"], keep=True, now=0.0)

    with pytest.raises(RequestConflict, match="r1"):
        ledger.known(KEY, b"another")


def test_the_same_id_of_another_tenant_is_another_request():
    ledger = Ledger(10_000, 60.0)
    open_ticket(ledger)

    assert ledger.known((TenantId("bob"), KEY[1]), b"another") is None


def test_the_oldest_outcome_goes_when_there_are_too_many_bytes():
    ledger = Ledger(3000, 60.0)
    ledger.end(open_ticket(ledger), [bytes(1000)], keep=True, now=0.0)

    ledger.end(open_ticket(ledger, OTHER), [bytes(1000)], keep=True, now=1.0)

    assert ledger.known(KEY, b"d") is None
    assert ledger.known(OTHER, b"d") is not None
    assert ledger.size_bytes <= 3000


def test_outcomes_get_too_old():
    ledger = Ledger(10_000, 60.0)
    ledger.end(open_ticket(ledger), [b"answer"], keep=True, now=0.0)
    assert ledger.next_deadline() == 60.0

    ledger.forget(60.0)

    assert ledger.known(KEY, b"d") is None
    assert ledger.size_bytes == 0
    assert ledger.next_deadline() == math.inf


def test_frames_are_let_go_when_a_request_ends():
    ledger = Ledger(10_000, 60.0)
    ticket = open_ticket(ledger)

    ledger.end(ticket, [b"answer"], keep=True, now=0.0)

    assert ticket.frames == ()
