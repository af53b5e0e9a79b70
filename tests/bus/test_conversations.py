"""A client's waits: what ends them, by the clock that the test holds."""

import pytest
from loractl.bus.conversations import GONE_AFTER_S, PING_EVERY_S, Conversations
from loractl.bus.errors import Aborted, AdapterNotFound, DaemonGone
from loractl.bus.failures import failed
from loractl.bus.ids import LOCAL_TENANT, RequestId, TenantId
from loractl.bus.messages import Done, Envelope, Message, Pong, Waiting

REQUEST = RequestId("r1")


def envelope(
    body: Message, request: str = REQUEST, *, last: bool = True, tenant: str = LOCAL_TENANT
) -> Envelope:
    return Envelope(request=RequestId(request), tenant=TenantId(tenant), body=body, last=last)


@pytest.fixture
def conversations() -> Conversations:
    return Conversations(daemon="/state")


def test_an_answer_ends_its_wait_and_no_other(conversations: Conversations) -> None:
    first, second = conversations.ask(REQUEST, 0.0), conversations.ask(RequestId("r2"), 0.0)

    conversations.hear(envelope(Done()), 0.1)

    assert first.final == Done()
    assert second.final is None


def test_parts_come_before_the_end(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(Done(), last=False), 0.1)

    assert (list(asked.parts), asked.final) == ([Done()], None)


def test_a_failure_becomes_the_error_that_was_raised(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(failed(AdapterNotFound("no such adapter"))), 0.1)

    assert isinstance(asked.final, AdapterNotFound)
    assert asked.final.message == "no such adapter"


def test_waiting_for_ones_turn_is_known_to_whoever_looks_and_told_to_nobody() -> None:
    reasons: list[str] = []
    conversations = Conversations(daemon="/state", on_waiting=reasons.append)
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(Waiting(reason="others are first", routine=True), last=False), 0.1)

    assert reasons == []
    assert asked.waits_for == "others are first"
    assert asked.final is None


def test_waiting_is_told_and_is_no_answer() -> None:
    reasons: list[str] = []
    conversations = Conversations(daemon="/state", on_waiting=reasons.append)
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(Waiting(reason="the trainer is restarting"), last=False), 0.1)

    assert reasons == ["the trainer is restarting"]
    assert (list(asked.parts), asked.final) == ([], None)


@pytest.mark.parametrize("stray", [envelope(Done(), "other"), envelope(Done(), tenant="mallory")])
def test_what_answers_nobody_is_dropped(conversations: Conversations, stray: Envelope) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(stray, 0.1)

    assert asked.final is None


def test_asking_again_under_the_same_id_joins_the_wait(conversations: Conversations) -> None:
    first = conversations.ask(REQUEST, 0.0)

    assert conversations.ask(REQUEST, 1.0) is first


def test_asking_again_after_the_answer_waits_anew(conversations: Conversations) -> None:
    first = conversations.ask(REQUEST, 0.0)
    conversations.hear(envelope(Done()), 0.1)

    second = conversations.ask(REQUEST, 1.0)

    assert second is not first
    assert second.final is None


def test_a_waker_is_called_once(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)
    calls: list[str] = []
    asked.wakers.append(lambda: calls.append("woken"))

    conversations.hear(envelope(Done(), last=False), 0.1)
    conversations.hear(envelope(Done()), 0.2)

    assert calls == ["woken"]


def test_short_waits_cost_no_ping(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 10.0)

    assert conversations.ping_due(10.0) is None
    assert conversations.ping_due(10.0 + PING_EVERY_S / 2) is None
    assert asked.final is None


def test_nobody_waits_nobody_pings(conversations: Conversations) -> None:
    assert conversations.ping_due(100.0) is None


def test_a_long_wait_pings_again_and_again(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    pings = [conversations.ping_due(PING_EVERY_S * turn) for turn in range(1, 4)]

    assert len({*pings, None}) == 4
    assert asked.final is None


def test_silence_counts_from_the_first_ping_without_any_word_after_it(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)
    conversations.ping_due(2.0)
    conversations.ping_due(4.0)

    assert conversations.silent_s(5.0) == 3.0
    conversations.hear(envelope(Done(), last=False), 5.0)
    assert conversations.silent_s(6.0) == 0.0
    assert asked.final is None


def test_giving_up_ends_every_wait_with_what_to_do(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    assert conversations.away(1.0)

    assert isinstance(asked.final, DaemonGone)
    assert asked.final.retryable
    assert "/state" in asked.final.message
    assert GONE_AFTER_S > PING_EVERY_S


def test_closing_ends_every_wait(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)

    conversations.close()

    assert isinstance(asked.final, Aborted)


def test_a_daemon_younger_than_the_request_never_got_it(conversations: Conversations) -> None:
    lost, kept = conversations.ask(REQUEST, 100.0), conversations.ask(RequestId("r2"), 106.5)
    ping = conversations.ping_due(107.0)
    assert ping

    conversations.hear(envelope(Pong(daemon_version="1", uptime_s=1.0), ping), 107.1)

    assert isinstance(lost.final, DaemonGone)
    assert kept.final is None


def test_a_pong_that_is_read_late_makes_the_daemon_no_younger(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 100.0)
    ping = conversations.ping_due(101.0)
    assert ping

    conversations.hear(envelope(Pong(daemon_version="1", uptime_s=2.0), ping), 161.0)

    assert asked.final is None


def test_the_answer_to_a_ping_of_the_caller_reaches_the_caller(conversations: Conversations) -> None:
    asked = conversations.ask(REQUEST, 0.0)
    pong = Pong(daemon_version="1", uptime_s=9.0)

    conversations.hear(envelope(pong), 0.1)

    assert asked.final == pong


def test_answers_that_nobody_waits_for_are_forgotten(conversations: Conversations) -> None:
    conversations.ask(REQUEST, 0.0)  # and dropped at once

    conversations.hear(envelope(Done()), 0.1)

    assert conversations.ping_due(100.0) is None
