"""What the journal tells of an operation that it does not have, or not any more."""

from pathlib import Path

import pytest
from loractl.bus.errors import InvalidRequest
from loractl.bus.ids import AdapterId
from loractl.bus.messages import ForwardBackward, ReadOperation
from loractl.tests.daemon.journalled_office import JournalledOffice, created, gather, passed
from loractl.tests.daemon.office import TRAINER

NEVER = 999


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER))
    return office


def refusal(office: JournalledOffice, adapter: AdapterId, number: int) -> str:
    with pytest.raises(InvalidRequest) as refused:
        office.ask(ReadOperation(adapter=adapter, number=number), request=f"h{number}")
    return refused.value.message


def test_an_operation_that_retention_took_is_told_with_the_settings_and_one_that_never_was_is_not(
    office: JournalledOffice,
) -> None:
    adapter, lane = created(office)
    office.settled(office.ask(gather(adapter, lane, 1), request="f1"))
    office.settled(office.answer(TRAINER, passed(), request="f1"))
    (logged,) = [each for each in office.store.history(adapter, 0, 9) if each.kind == ForwardBackward.kind]
    never = refusal(office, adapter, NEVER)

    with office.store.tables.transaction():  # as compaction does it
        office.store.tables.run("INSERT INTO clipped VALUES (?)", adapter)
        office.store.delete([logged.number])

    assert never == f"the journal has no ended operation {NEVER} of this adapter"
    assert f"no longer has operation {logged.number} of this adapter: journal.keep_s" in refusal(
        office, adapter, logged.number
    )
