"""Clients with patience: a daemon that goes away costs them a pause, and nothing comes twice."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.conversations import Conversations
from loractl.bus.errors import (
    ActorRestarting,
    ActorStopping,
    AdapterNotFound,
    DaemonGone,
    DaemonNotRunning,
    LoractlError,
)
from loractl.bus.failures import failed
from loractl.bus.ids import LOCAL_TENANT, RequestId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    Done,
    Echo,
    Echoed,
    Envelope,
    ListAdapters,
    Message,
    Ping,
    Pong,
    Recall,
    Recalled,
    Sample,
    SampleChunk,
)
from loractl.tests.bus.conftest import Script, ScriptedDaemon

REQUEST = RequestId("r1")
FRAMES = [b"header", b"array"]
PATIENCE_S = 60.0
Start = Callable[[str, Script], ScriptedDaemon]


def envelope(body: Message, request: str = REQUEST, *, last: bool = True) -> Envelope:
    return Envelope(request=RequestId(request), tenant=LOCAL_TENANT, body=body, last=last)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def conversations(told: list[str]) -> Conversations:
    return Conversations(daemon="/state", on_waiting=told.append, patience_s=PATIENCE_S)


def hear_a_daemon_born_at(born_at: float, conversations: Conversations, now: float) -> None:
    ping = conversations.ping_due(now)
    assert ping
    conversations.hear(envelope(Pong(daemon_version="1", uptime_s=now - born_at), ping), now)


def asked_after(conversations: Conversations, now: float) -> list[RequestId]:
    bodies = [each.body for each in conversations.recalls_due(now)]
    return [request for body in bodies if isinstance(body, Recall) for request in body.requests]


# --- decided by the clock that the test holds --------------------------------------------------------------


def test_a_wait_outlives_an_absence_for_as_long_as_there_is_patience(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    assert not conversations.away(10.0)
    assert not conversations.away(10.0 + PATIENCE_S - 1)
    assert asked.final is None
    assert conversations.away(10.0 + PATIENCE_S)

    assert isinstance(asked.final, DaemonGone)
    assert "was not back after 60 s" in asked.final.message


def test_every_absence_has_the_whole_patience(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)
    conversations.away(10.0)
    hear_a_daemon_born_at(65.0, conversations, 66.0)

    assert not conversations.away(75.0)
    assert asked.final is None


def test_without_patience_the_first_absence_ends_every_wait_and_nothing_is_told(told: list[str]):
    conversations = Conversations(daemon="/state", on_waiting=told.append)
    asked = conversations.ask(REQUEST, 0.0)

    assert conversations.away(10.0)
    conversations.hear(envelope(Done()), 11.0)

    assert isinstance(asked.final, DaemonGone)
    assert "not back" not in asked.final.message
    assert told == []


def test_once_patience_has_ended_it_is_not_had_again_before_the_daemon_says_something(
    conversations: Conversations,
):
    first = conversations.ask(REQUEST, 0.0)
    conversations.away(10.0)
    assert conversations.away(80.0)

    second = conversations.ask(RequestId("r2"), 81.0)

    assert conversations.away(102.0)
    assert isinstance(first.final, DaemonGone)
    assert isinstance(second.final, DaemonGone)


def test_the_next_daemon_is_asked_after_what_is_unanswered_and_sent_what_it_does_not_know(
    conversations: Conversations,
):
    asked = conversations.ask(REQUEST, 0.0, frames=FRAMES)
    newer = conversations.ask(RequestId("r2"), 20.5, frames=FRAMES)

    hear_a_daemon_born_at(20.0, conversations, 21.0)
    recalled = asked_after(conversations, 21.0)
    conversations.hear(envelope(Recalled(unknown=(REQUEST,)), "a"), 21.1)
    again = conversations.take_unheard()
    conversations.hear(envelope(Done()), 21.2)

    assert (recalled, again) == ([REQUEST], [FRAMES])
    assert (asked.final, newer.final) == (Done(), None)


def test_one_that_was_restarted_twice_is_asked_twice(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    for born_at in (20.0, 30.0):
        hear_a_daemon_born_at(born_at, conversations, born_at + 1)
        assert asked_after(conversations, born_at + 1) == [REQUEST]

    assert asked.final is None


def test_a_stream_of_which_parts_were_taken_ends_with_the_daemon(conversations: Conversations):
    taken, untouched = conversations.ask(REQUEST, 0.0), conversations.ask(RequestId("r2"), 0.0)
    conversations.hear(envelope(Done(), last=False), 1.0)
    conversations.hear(envelope(Done(), "r2", last=False), 1.0)
    assert [*taken.take_parts()] == [Done()]

    conversations.away(10.0)

    assert isinstance(taken.final, DaemonGone)
    assert untouched.final is None


def test_a_stream_of_which_nothing_was_taken_begins_anew_without_what_had_come(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)
    conversations.hear(envelope(Done(), last=False), 1.0)

    hear_a_daemon_born_at(20.0, conversations, 21.0)
    conversations.hear(envelope(Done(), last=False), 22.0)

    assert [*asked.take_parts()] == [Done()]


@pytest.mark.parametrize("patience_s", [0.0, PATIENCE_S])
def test_a_stream_of_which_parts_were_taken_is_never_sent_again(patience_s: float):
    conversations = Conversations(daemon="/state", patience_s=patience_s)
    asked = conversations.ask(REQUEST, 0.0, frames=FRAMES)
    conversations.hear(envelope(Done(), last=False), 1.0)
    assert [*asked.take_parts()] == [Done()]

    conversations.hear(envelope(Recalled(unknown=(REQUEST,)), "a"), 5.0)

    assert conversations.take_unheard() == []
    assert isinstance(asked.final, DaemonGone)


def test_what_a_daemon_that_stops_refuses_is_asked_after_a_little_later(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(failed(ActorStopping("stopping"))), 10.0)

    assert asked.final is None
    assert asked_after(conversations, 10.5) == []
    assert asked_after(conversations, 11.0) == [REQUEST]


def test_a_refusal_is_the_answer_once_patience_has_ended(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    for now in (10.0, 40.0, 10.0 + PATIENCE_S):
        assert asked.final is None
        conversations.hear(envelope(failed(ActorStopping("stopping"))), now)

    assert isinstance(asked.final, ActorStopping)


def test_a_request_that_actors_keep_dying_of_is_not_tried_for_ever(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    for now in (1.0, 2.0, 3.0):
        assert asked.final is None
        conversations.hear(envelope(failed(ActorRestarting("died"))), now)

    assert isinstance(asked.final, ActorRestarting)


@pytest.mark.parametrize("error", [ActorStopping("stopping"), ActorRestarting("died")])
def test_without_patience_a_refusal_is_the_answer(error: LoractlError):
    conversations = Conversations(daemon="/state")
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(failed(error)), 1.0)

    assert isinstance(asked.final, type(error))


def test_what_is_no_wish_for_another_try_is_an_answer(conversations: Conversations):
    asked = conversations.ask(REQUEST, 0.0)

    conversations.hear(envelope(failed(AdapterNotFound("none"))), 1.0)

    assert isinstance(asked.final, AdapterNotFound)


def test_a_person_reads_one_line_when_the_daemon_goes_and_one_when_it_is_back(
    conversations: Conversations, told: list[str]
):
    waiting = [conversations.ask(RequestId(str(n)), 0.0) for n in range(3)]

    for down in (10.0, 50.0):
        conversations.hear(envelope(failed(ActorStopping("stopping")), "0"), down)
        conversations.away(down + 2)
        conversations.away(down + 3)
        hear_a_daemon_born_at(down + 5, conversations, down + 6)

    away = "the daemon on /state is away: what is under way goes on when it is back, within 60 s"
    assert told == [away, "the daemon on /state is back, and takes up what was under way"] * 2
    assert [each.final for each in waiting] == [None] * 3


# --- the client itself ------------------------------------------------------------------------------------


class Journalled:
    """A daemon's script: what an earlier one of these had ended is answered, the rest is unknown."""

    def __init__(self) -> None:
        self.ended: dict[RequestId, Message] = {}
        self.ran: list[RequestId] = []
        self.born = time.monotonic()

    def __call__(self, asked: Envelope) -> Sequence[Envelope]:
        def answer(body: Message, request: RequestId = asked.request) -> Envelope:
            return Envelope(request=request, tenant=asked.tenant, body=body)

        match asked.body:
            case Ping():
                return [answer(Pong(daemon_version="1", uptime_s=time.monotonic() - self.born))]
            case Recall(requests=requests):
                known = [answer(self.ended[each], each) for each in requests if each in self.ended]
                unknown = tuple(each for each in requests if each not in self.ended)
                return [*known, answer(Recalled(unknown=unknown))]
            case Echo(payload=payload):
                self.ran.append(asked.request)
                return [answer(Echoed(payload=payload))]
            case _:
                return []


def restarted(layout: StateLayout, daemon: Start, server: ScriptedDaemon, script: Script) -> None:
    server.stop()
    daemon(layout.client_socket, script)


def test_requests_under_way_go_on_with_the_next_daemon(daemon: Start, config: Config, layout: StateLayout):
    server, following, told = daemon(layout.client_socket), Journalled(), []
    with Client(config, on_waiting=told.append, patience_s=PATIENCE_S) as client:
        ended = client.submit(ListAdapters(), request=RequestId("ended"))
        lost = client.submit(Echo(payload=np.arange(3, dtype=np.uint8)), request=RequestId("lost"))
        server.wait_for(Echo)
        following.ended[ended.request] = Done()
        server.stop()
        while not told:
            with pytest.raises(TimeoutError):
                ended.result(0.1)
        unsent = client.submit(Echo(payload=np.zeros(1, np.uint8)), request=RequestId("unsent"))

        following.born = time.monotonic()
        daemon(layout.client_socket, following)

        assert ended.result(60) == Done()
        assert isinstance(lost.result(60), Echoed)
        assert isinstance(unsent.result(60), Echoed)
    assert {"lost", "unsent"} == {*following.ran}
    assert [text.split(" is ")[1].split()[0] for text in told] == ["away:", "back,"]


def test_a_daemon_that_is_back_before_anybody_noticed_gets_what_it_never_had(
    daemon: Start, config: Config, layout: StateLayout
):
    server = daemon(layout.client_socket)
    with Client(config, patience_s=PATIENCE_S) as client:
        pending = client.submit(Echo(payload=np.zeros(1, np.uint8)))
        server.wait_for(Echo)

        restarted(layout, daemon, server, Journalled())

        assert isinstance(pending.result(60), Echoed)


def test_a_stream_that_gave_parts_ends_and_the_client_goes_on(
    daemon: Start, config: Config, layout: StateLayout
):
    chunk = SampleChunk(index=0, tokens=np.array([7]), text="h")
    server = daemon(layout.client_socket, lambda asked: [envelope(chunk, asked.request, last=False)])
    with Client(config, patience_s=PATIENCE_S) as client:
        stream = client.stream(
            Sample(adapter=None, version=None, prompt=np.arange(3), max_tokens=2, stream=True)
        )
        assert isinstance(next(stream), SampleChunk)
        server.stop()
        with pytest.raises(DaemonGone):
            next(stream)

        daemon(layout.client_socket, Journalled())

        assert isinstance(client.request(Echo(payload=np.zeros(1, np.uint8)), timeout_s=60), Echoed)


def test_a_daemon_that_stays_away_ends_the_wait_with_how_long_it_was(
    daemon: Start, config: Config, layout: StateLayout
):
    server = daemon(layout.client_socket)
    with Client(config, patience_s=1.0) as client:
        pending = client.submit(ListAdapters())
        threading.Thread(target=server.stop).start()

        with pytest.raises(DaemonGone, match="was not back after 1 s"):
            pending.result(60)
        with pytest.raises(DaemonNotRunning):
            client.submit(ListAdapters())
