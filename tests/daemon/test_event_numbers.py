"""Events are numbered without a gap, also over a restart."""

from collections.abc import Sequence
from pathlib import Path

from loractl.bus.messages import VersionTable
from loractl.daemon.decisions import Decision, Publish
from loractl.tests.daemon.journalled_office import JournalledOffice
from loractl.tests.daemon.office import TRAINER, record


def numbers(decisions: Sequence[Decision]) -> list[int]:
    return [each.event.number for each in decisions if isinstance(each, Publish)]


def table(office: JournalledOffice) -> VersionTable:
    return office.broker._publishing.versions.table()


def test_numbers_go_on_where_they_ended(tmp_path: Path):
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    versions = [record(1), record(2)]

    assert numbers(office.settled(office.ready(TRAINER, versions=versions))) == [1, 2]
    again = office.restarted()
    assert table(again).last_event == 2
    assert numbers(again.settled(again.ready(TRAINER, versions=versions))) == [3, 4]
    assert table(again).last_event == 4


def test_a_number_that_the_journal_refused_at_first_is_written_later(tmp_path: Path):
    office = JournalledOffice(file=tmp_path / "journal.sqlite")
    office.settled(office.ready(TRAINER, versions=[record(1)]), refused="full")
    office.now += 60.0

    office.settled(office.broker.tick(office.now))

    assert table(office.restarted()).last_event == 1
