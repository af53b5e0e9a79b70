"""A version that was deleted stays so: its deletion is durable before it is answered."""

from pathlib import Path

import pytest
from loractl.bus.ids import AdapterId
from loractl.bus.messages import DeleteVersion, Done, DropVersion, Failed
from loractl.daemon.decisions import Tell, WriteDown
from loractl.tests.daemon.journalled_office import JournalledOffice, told
from loractl.tests.daemon.office import ALICE, BOB, TRAINER, record

DELETE = DeleteVersion(adapter=AdapterId("ad-1"), version=1)


@pytest.fixture
def office(tmp_path: Path) -> JournalledOffice:
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER, versions=[record(1, held=True)]))
    return office


def dropped(decisions: object) -> list[object]:
    assert isinstance(decisions, list)
    return [each.envelope.body for each in decisions if isinstance(each, Tell)]


def test_it_is_written_down_before_anything_is_said_or_done(office: JournalledOffice):
    first = office.ask(DELETE)

    assert [type(each) for each in first] == [WriteDown]
    done = office.settled(first)
    assert told(done) == [Done()]
    assert dropped(done) == [DropVersion(adapter=AdapterId("ad-1"), version=1)]


def test_a_directory_that_turns_up_after_a_crash_is_dropped(office: JournalledOffice):
    office.settled(office.ask(DELETE))

    again = office.restarted()

    found = again.settled(again.ready(TRAINER, versions=[record(1, held=True), record(2, held=True)]))
    assert dropped(found) == [DropVersion(adapter=AdapterId("ad-1"), version=1)]
    assert again.broker.status(0.0).versions == 1


def test_a_full_disk_is_told_and_the_version_stays(office: JournalledOffice):
    (failure,) = told(office.settled(office.ask(DELETE), refused="full"))

    assert isinstance(failure, Failed)
    assert failure.code == "storage_failed"
    assert office.broker.status(0.0).versions == 1


def test_nobody_deletes_anothers_version_and_nothing_is_written_for_the_attempt(office: JournalledOffice):
    decisions = office.ask(DELETE, tenant=BOB)

    assert told(decisions) == [Done()]
    assert not any(isinstance(each, WriteDown) for each in decisions)
    assert office.broker.status(0.0).versions == 1


def test_two_that_ask_at_once_are_both_told(office: JournalledOffice):
    both = [*office.ask(DELETE, request="a"), *office.ask(DELETE, request="b", tenant=ALICE)]

    assert told(office.settled(both)) == [Done(), Done()]


@pytest.mark.parametrize("version", [2**63 + 5, 0, -1])
def test_a_number_that_no_version_has_is_not_written(tmp_path: Path, version: int):
    office = JournalledOffice(file=tmp_path / "other.sqlite")  # nobody knows yet which versions there are

    decisions = office.ask(DeleteVersion(adapter=AdapterId("ad-1"), version=version))

    assert told(decisions) == [Done()]
    assert not any(isinstance(each, WriteDown) for each in decisions)
