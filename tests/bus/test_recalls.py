"""Answers get lost on their way: a client asks after them, and sends what never arrived once more."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from loractl.bus.asked import RECALL_AFTER_S
from loractl.bus.async_client import AsyncClient
from loractl.bus.client import Client
from loractl.bus.config import Config
from loractl.bus.conversations import Conversations
from loractl.bus.errors import DaemonGone
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    Done,
    Envelope,
    HistoryEntry,
    ListTenants,
    LoadCheckpoint,
    Message,
    ReadOperation,
    Recall,
    Recalled,
    TenantList,
    Waiting,
)
from loractl.client.history import read_operation
from loractl.tests.bus.conftest import Script, ScriptedDaemon

FRAMES = [b"header", b"array"]


@pytest.fixture
def conversations() -> Conversations:
    return Conversations(daemon="/state")


def recalled(*unknown: RequestId) -> Envelope:
    return Envelope(request=RequestId("a"), tenant=LOCAL_TENANT, body=Recalled(unknown=unknown))


def asked_after(recalls: Sequence[Envelope]) -> list[tuple[TenantId, set[str]]]:
    return [(each.tenant, {*each.body.requests}) for each in recalls if isinstance(each.body, Recall)]


def test_what_is_long_without_an_answer_is_asked_after_more_and_more_rarely(conversations: Conversations):
    asked = conversations.ask(RequestId("r1"), 0.0)

    times = [now for now in range(40) if conversations.recalls_due(float(now))]

    assert asked.final is None
    assert times == [RECALL_AFTER_S, 6, 14, 30]


def test_each_tenant_is_asked_for_by_itself_and_what_was_answered_not_at_all(conversations: Conversations):
    alice, bob = TenantId("alice"), TenantId("bob")
    waiting = [
        conversations.ask(RequestId(name), 0.0, tenant)
        for name, tenant in (("a1", alice), ("a2", alice), ("b1", bob), ("b2", bob))
    ]
    conversations.hear(Envelope(request=RequestId("b2"), tenant=bob, body=Done()), 1.0)

    assert asked_after(conversations.recalls_due(2.0)) == [(alice, {"a1", "a2"}), (bob, {"b1"})]
    assert len(waiting) == 4


def test_many_are_asked_after_in_messages_of_bounded_size(conversations: Conversations):
    waiting = [conversations.ask(RequestId(str(number)), 0.0) for number in range(600)]

    sizes = [len(requests) for _, requests in asked_after(conversations.recalls_due(2.0))]

    assert sizes == [256, 256, 88]
    assert len(waiting) == 600


def test_what_the_daemon_never_heard_of_is_sent_again_as_it_was(conversations: Conversations):
    lost = conversations.ask(RequestId("r1"), 0.0, frames=FRAMES)
    answered = conversations.ask(RequestId("r2"), 0.0, frames=FRAMES)
    conversations.hear(Envelope(request=answered.request, tenant=LOCAL_TENANT, body=Done()), 1.0)

    conversations.hear(recalled(lost.request, answered.request), 2.0)

    assert conversations.take_unheard() == [FRAMES]
    assert conversations.take_unheard() == []


def test_a_reason_to_wait_that_is_told_again_is_shown_once() -> None:
    shown: list[str] = []
    conversations = Conversations(daemon="/state", on_waiting=shown.append)
    asked = conversations.ask(RequestId("r1"), 0.0)

    for _ in range(2):
        waiting = Waiting(reason="the trainer is restarting")
        conversations.hear(
            Envelope(request=asked.request, tenant=LOCAL_TENANT, body=waiting, last=False), 1.0
        )

    assert shown == ["the trainer is restarting"]


def test_an_answer_of_which_a_part_was_taken_and_the_rest_is_lost_ends_with_what_to_do(
    conversations: Conversations,
):
    asked = conversations.ask(RequestId("r1"), 0.0, frames=FRAMES)
    conversations.hear(Envelope(request=asked.request, tenant=LOCAL_TENANT, body=Done(), last=False), 1.0)
    assert [*asked.take_parts()] == [Done()]

    conversations.hear(recalled(asked.request), 2.0)

    assert conversations.take_unheard() == []
    assert isinstance(asked.final, DaemonGone)
    assert (
        asked.final.message
        == "the rest of an answer of the daemon on /state was lost on its way: ask once more"
    )


def test_an_answer_that_is_wanted_whole_is_asked_for_again_where_its_end_is_lost(
    daemon: Callable[[str, Script], ScriptedDaemon], config: Config, layout: StateLayout
):
    answers = [[Done()], [Done(), TenantList(tenants=())]]  # the first one without its end

    def script(envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.body, Recall):
            told = Recalled(unknown=envelope.body.requests)
            return [Envelope(request=envelope.request, tenant=envelope.tenant, body=told)]
        if not isinstance(envelope.body, ListTenants):
            return []
        parts = answers.pop(0)
        return [
            Envelope(
                request=envelope.request, tenant=envelope.tenant, body=body, last=body.kind == TenantList.kind
            )
            for body in parts
        ]

    daemon(layout.client_socket, script)

    with Client(config) as client:
        whole = client.submit(ListTenants()).whole()

    assert whole == [Done(), TenantList(tenants=())]
    assert answers == []


def test_an_operation_that_was_lost_before_its_outcome_is_read_once_more(
    daemon: Callable[[str, Script], ScriptedDaemon], config: Config, layout: StateLayout
):
    adapter = AdapterId("ad-1")
    load = LoadCheckpoint(adapter=adapter, lane=LaneId("l"), seq=1, source=adapter, name="first")
    answers: list[list[Message]] = [[Done()], [load, Done()]]

    def script(envelope: Envelope) -> list[Envelope]:
        if not isinstance(envelope.body, ReadOperation):
            return []
        return [
            Envelope(request=envelope.request, tenant=envelope.tenant, body=body, last=body == Done())
            for body in answers.pop(0)
        ]

    daemon(layout.client_socket, script)
    entry = HistoryEntry(
        number=1,
        order=1,
        operation=load.kind,
        lane=load.lane,
        seq=1,
        state="done",
        came_unix_s=0.0,
        size_bytes=1,
        step=-1,
        details="",
    )

    with Client(config) as client:
        assert read_operation(client, adapter, entry, LOCAL_TENANT) == (load, Done())


class Losing:
    """A daemon that loses the first request, or else the answer to it."""

    def __init__(self, *, hears: bool) -> None:
        self.kept: Envelope | None = None
        self.hears = hears
        self.first = True

    def __call__(self, envelope: Envelope) -> list[Envelope]:
        if isinstance(envelope.body, ListTenants):
            return self._asked(envelope)
        if not isinstance(envelope.body, Recall):
            return []
        known = [] if self.kept is None else [self.kept]
        unknown = envelope.body.requests if self.kept is None else ()
        told = Recalled(unknown=unknown)
        return [*known, Envelope(request=envelope.request, tenant=envelope.tenant, body=told)]

    def _asked(self, envelope: Envelope) -> list[Envelope]:
        answer = Envelope(request=envelope.request, tenant=envelope.tenant, body=TenantList(tenants=()))
        lost, self.first = self.first, False
        if not lost or self.hears:
            self.kept = answer
        return [] if lost else [answer]


@pytest.mark.parametrize("hears", [True, False], ids=["the answer was lost", "the request was lost"])
def test_the_plain_client_gets_its_answer_all_the_same(
    daemon: Callable[[str, Script], ScriptedDaemon], config: Config, layout: StateLayout, hears: bool
):
    daemon(layout.client_socket, Losing(hears=hears))

    with Client(config) as client:
        answer: Message = client.request(ListTenants(), timeout_s=20)

    assert answer == TenantList(tenants=())


@pytest.mark.parametrize("hears", [True, False], ids=["the answer was lost", "the request was lost"])
def test_the_asyncio_client_gets_its_answer_all_the_same(
    daemon: Callable[[str, Script], ScriptedDaemon], config: Config, layout: StateLayout, hears: bool
):
    daemon(layout.client_socket, Losing(hears=hears))

    async def ask() -> Message:
        async with AsyncClient(config) as client:
            return await client.request(ListTenants(), timeout_s=20)

    assert asyncio.run(ask()) == TenantList(tenants=())
