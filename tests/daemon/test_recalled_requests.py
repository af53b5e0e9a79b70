"""A client asks after requests to which no answer came."""

from pathlib import Path

import pytest
from loractl.bus.ids import AdapterId, RequestId
from loractl.bus.messages import Done, ListTenants, Message, Recall, Recalled, TenantList, UnloadAdapter
from loractl.daemon.decisions import Decision, Relay, Reply
from loractl.tests.daemon.journalled_office import JournalledOffice, told
from loractl.tests.daemon.office import ALICE, BEN, BOB, TRAINER

QUESTION, ANSWER = ListTenants(), TenantList(tenants=())
UNLOAD = UnloadAdapter(adapter=AdapterId("ad-1"))


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


def recall(office: JournalledOffice, *requests: str, **more: object) -> list[Decision]:
    wanted = Recall(requests=tuple(map(RequestId, requests)))
    return office.settled(office.ask(wanted, request="recall", **more))


def unknown(*requests: str) -> Message:
    return Recalled(unknown=tuple(map(RequestId, requests)))


def test_what_has_ended_is_answered_once_more_and_what_nobody_knows_is_named(office: JournalledOffice):
    office.settled(office.ask(QUESTION))
    office.settled(office.answer(TRAINER, ANSWER))

    assert told(recall(office, "r1", "never")) == [ANSWER, unknown("never")]


def test_what_is_under_way_will_be_answered(office: JournalledOffice):
    office.settled(office.ask(QUESTION))

    assert told(recall(office, "r1", client=BEN)) == [unknown()]

    answered = office.settled(office.answer(TRAINER, ANSWER))
    assert BEN in [each.client for each in answered if isinstance(each, Relay | Reply)]


def test_after_a_restart_the_journal_knows_how_it_ended(office: JournalledOffice):
    office.settled(office.ask(UNLOAD))
    office.settled(office.answer(TRAINER, Done()))

    assert told(recall(office.restarted(), "r1")) == [Done(), unknown()]


def test_nobody_can_ask_after_anothers_request(office: JournalledOffice):
    office.settled(office.ask(QUESTION, tenant=ALICE))
    office.settled(office.answer(TRAINER, ANSWER, tenant=ALICE))

    assert told(recall(office, "r1", tenant=BOB)) == [unknown("r1")]


def test_an_id_that_is_named_often_is_answered_once(office: JournalledOffice):
    office.settled(office.ask(QUESTION))
    office.settled(office.answer(TRAINER, ANSWER))

    assert told(recall(office, *["r1"] * 1000)) == [ANSWER, unknown()]


def test_so_many_bytes_are_answered_at_one_time(office: JournalledOffice, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loractl.daemon.recalls._BYTES_AT_ONCE", 1)
    for request in ("r1", "r2"):
        office.settled(office.ask(QUESTION, request=request))
        office.settled(office.answer(TRAINER, ANSWER, request=request))

    assert told(recall(office, "r1", "r2")) == [ANSWER, unknown()]
    assert told(recall(office, "r2", "r1")) == [ANSWER, unknown()]
