"""What a stranger asks of somebody's adapter never stands among what its owner did."""

from pathlib import Path

import pytest
from loractl.bus.errors import AdapterNotFound
from loractl.bus.failures import failed
from loractl.bus.ids import AdapterId, LaneId, TenantId
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    GetHistory,
    History,
    Message,
    OptimStep,
    StepResult,
)
from loractl.tests.daemon.journalled_office import JournalledOffice, forwarded, told
from loractl.tests.daemon.office import ALICE, LORA, TRAINER, details_of

MALLORY = TenantId("mallory")


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


def created(office: JournalledOffice) -> tuple[AdapterId, LaneId]:
    (sent,) = forwarded(
        office.settled(office.ask(CreateAdapter(name="pirate", lora=LORA), request="c", tenant=ALICE))
    )
    assert isinstance(sent, CreateAdapter)
    reply = AdapterCreated(details=details_of(sent.adapter), lane=sent.lane)
    office.settled(office.answer(TRAINER, reply, request="c", tenant=ALICE))
    return sent.adapter, sent.lane


def stepped(
    office: JournalledOffice, tenant: TenantId, adapter: AdapterId, lane: LaneId, seq: int
) -> list[Message]:
    """An operation, answered as the trainer does: strangers find no such adapter."""
    request = f"{tenant}-{seq}"
    body = OptimStep(adapter=adapter, lane=lane, seq=seq, learning_rate=0.1)
    office.settled(office.ask(body, request=request, tenant=tenant))
    done = StepResult(applied=True, step=seq, grad_norm=1.0, learning_rate=0.1, tokens=1)
    answer = done if tenant == ALICE else failed(AdapterNotFound("there is no adapter"))
    return told(office.settled(office.answer(TRAINER, answer, request=request, tenant=tenant)))


def history(office: JournalledOffice, tenant: TenantId, adapter: AdapterId) -> Message:
    (heard,) = told(
        office.settled(office.ask(GetHistory(adapter=adapter, after=0), request="h", tenant=tenant))
    )
    return heard


def test_a_strangers_operation_is_no_part_of_the_adapters_history(office: JournalledOffice):
    adapter, lane = created(office)
    stepped(office, ALICE, adapter, lane, 1)
    stepped(office, MALLORY, adapter, lane, 2)
    stepped(office, ALICE, adapter, lane, 2)

    found = history(office, ALICE, adapter)

    assert isinstance(found, History)
    assert [(entry.seq, entry.state) for entry in found.entries] == [(1, "done"), (2, "done")]


def test_who_names_an_adapter_first_does_not_own_it(office: JournalledOffice):
    """As with one that was made before there was a journal."""
    adapter, lane = AdapterId("ad-old"), LaneId("ln-old")
    stepped(office, MALLORY, adapter, lane, 1)
    stepped(office, ALICE, adapter, lane, 1)

    assert isinstance(history(office, ALICE, adapter), History)
    with pytest.raises(AdapterNotFound):
        history(office, MALLORY, adapter)


def test_an_adapter_is_recovered_without_what_strangers_asked_of_it(office: JournalledOffice):
    adapter, lane = created(office)
    stepped(office, ALICE, adapter, lane, 1)
    stepped(office, MALLORY, adapter, lane, 2)

    again = office.restarted()
    again.settled(again.ready(TRAINER))

    assert {logged.key[0] for logged in again.store.after(adapter)} == {ALICE}
