"""Receipts: a publish is answered when a sampler serves it, or with the reason why none does."""

import math

from loractl.bus.errors import PublishFailed
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import Receipt
from loractl.daemon.decisions import ClientId
from loractl.daemon.ledger import Ticket
from loractl.daemon.receipts import Receipts
from loractl.daemon.routing import Destination
from loractl.tests.daemon.office import OTHER_SAMPLER, SAMPLER, record, served

TWO = {SAMPLER: False, OTHER_SAMPLER: False}


def ticket() -> Ticket:
    key = (TenantId("alice"), RequestId("r1"))
    return Ticket(key, "publish_adapter", b"d", Destination.TRAINER, (), 1, {ClientId(b"ann"): None})


def test_a_publish_waits_until_a_sampler_serves_it():
    receipts = Receipts(120.0)

    assert receipts.open(ticket(), record(3), TWO, now=10.0) == []
    [settled] = receipts.served(served(SAMPLER, 3), TWO, now=10.5)

    answer = settled.answer
    assert isinstance(answer, Receipt)
    assert (answer.record.number, answer.sampler, answer.engine) == (3, "sampler-0", "torch")
    assert answer.waited_ms == 500.0
    assert len(receipts) == 0


def test_without_samplers_the_receipt_comes_at_once():
    [settled] = Receipts(120.0).open(ticket(), record(3), {}, now=0.0)

    assert isinstance(settled.answer, Receipt)
    assert settled.answer.sampler == ""
    assert settled.answer.probe_max_abs_diff is None


def test_one_refusing_sampler_is_not_the_end_while_another_may_serve():
    receipts = Receipts(120.0)
    receipts.open(ticket(), record(3), TWO, now=0.0)

    assert receipts.served(served(SAMPLER, 3, error="torn file"), TWO, now=1.0) == []
    [settled] = receipts.served(served(OTHER_SAMPLER, 3), TWO, now=2.0)

    assert isinstance(settled.answer, Receipt)


def test_a_publish_fails_when_every_sampler_said_why_it_cannot():
    receipts = Receipts(120.0)
    receipts.open(ticket(), record(3), TWO, now=0.0)
    receipts.served(served(SAMPLER, 3, error="torn file"), TWO, now=1.0)

    [settled] = receipts.served(served(OTHER_SAMPLER, 3, error="no memory"), TWO, now=2.0)

    assert isinstance(settled.answer, PublishFailed)
    assert "sampler-0: torn file" in settled.answer.message
    assert "sampler-1: no memory" in settled.answer.message


def test_a_publish_fails_when_the_last_sampler_is_given_up():
    receipts = Receipts(120.0)
    receipts.open(ticket(), record(3), TWO, now=0.0)
    receipts.served(served(SAMPLER, 3, error="torn file"), TWO, now=1.0)

    [settled] = receipts.despair({SAMPLER: False, OTHER_SAMPLER: True})

    assert isinstance(settled.answer, PublishFailed)
    assert "sampler-1 was given up" in settled.answer.message


def test_a_publish_gives_up_in_time_and_says_that_the_version_exists():
    receipts = Receipts(120.0)
    receipts.open(ticket(), record(3), TWO, now=5.0)
    assert receipts.next_deadline() == 125.0

    assert receipts.expire(124.9) == []
    [settled] = receipts.expire(125.0)

    assert isinstance(settled.answer, PublishFailed)
    assert "version 3 of 'pirate' is written" in settled.answer.message
    assert receipts.next_deadline() == math.inf


def test_a_version_that_nobody_waits_for_settles_nothing():
    assert Receipts(120.0).served(served(SAMPLER, 3), TWO, now=0.0) == []


def test_a_sampler_that_told_of_a_version_before_its_publish_came_again_is_believed():
    """After a crash of the daemon it finds the version in the table when it starts."""
    receipts = Receipts(120.0)
    receipts.served(served(SAMPLER, 3), TWO, now=0.0)

    [settled] = receipts.open(ticket(), record(3), TWO, now=1.0)

    assert isinstance(settled.answer, Receipt)
    assert settled.answer.sampler == "sampler-0"
    assert len(receipts) == 0


def test_a_refusal_that_came_before_counts_too_and_what_a_dead_sampler_said_does_not():
    receipts = Receipts(120.0)
    receipts.served(served(SAMPLER, 3, error="torn file"), TWO, now=0.0)
    receipts.served(served(OTHER_SAMPLER, 3), TWO, now=0.0)
    receipts.lost(OTHER_SAMPLER)

    assert receipts.open(ticket(), record(3), TWO, now=1.0) == []
    [settled] = receipts.served(served(OTHER_SAMPLER, 3, error="no memory"), TWO, now=2.0)

    assert isinstance(settled.answer, PublishFailed)
    assert "sampler-0: torn file" in settled.answer.message
