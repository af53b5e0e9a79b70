"""The version table: admission, retirement, release, and what a starting trainer brings."""

import pytest
from loractl.bus.errors import VersionNotFound
from loractl.bus.ids import AdapterId
from loractl.bus.messages import AdapterDeleted, AdapterPublished, VersionRetired
from loractl.daemon.versions import Drop, VersionKey, Versions
from loractl.tests.daemon.office import ALICE, BOB, OTHER_SAMPLER, SAMPLER, record

ONE = AdapterId("ad-1")


def key(number: int, adapter: str = "ad-1") -> VersionKey:
    return VersionKey(AdapterId(adapter), number)


def with_versions(*numbers: int, keep: int = 4) -> Versions:
    versions = Versions(keep=keep)
    for number in numbers:
        versions.written(record(number))
    return versions


def test_a_written_version_is_announced_with_the_next_number():
    versions = Versions(keep=4)

    assert versions.written(record(1)) == [AdapterPublished(number=1, record=record(1))]
    assert versions.written(record(2)) == [AdapterPublished(number=2, record=record(2))]
    assert versions.last_event == 2


def test_a_version_that_is_written_again_stays_as_it_is_needed():
    versions = with_versions(1)
    pinned = versions.admit(ALICE, ONE, None)

    assert versions.written(record(1)) == []
    assert versions.unpin(pinned) == []


def test_latest_is_the_highest_number():
    assert with_versions(1, 2, 3).admit(ALICE, ONE, None) == key(3)


def test_a_version_can_be_asked_for_by_number():
    assert with_versions(1, 2, 3).admit(ALICE, ONE, 2) == key(2)


def test_a_missing_number_names_those_that_exist():
    with pytest.raises(VersionNotFound, match="no version 9; there is 1, 2"):
        with_versions(1, 2).admit(ALICE, ONE, 9)


def test_an_adapter_without_versions_says_to_publish_first():
    with pytest.raises(VersionNotFound, match="publish it first"):
        Versions(keep=4).admit(ALICE, ONE, None)


@pytest.mark.parametrize("number", [None, 1, 9])
def test_another_tenants_adapter_answers_as_one_that_does_not_exist(number: int | None):
    with pytest.raises(VersionNotFound) as foreign:
        with_versions(1).admit(BOB, ONE, number)
    with pytest.raises(VersionNotFound) as missing:
        Versions(keep=4).admit(BOB, ONE, number)

    assert str(foreign.value) == str(missing.value)


def test_versions_beyond_the_newest_few_are_retired_oldest_first():
    versions = with_versions(1, 2, keep=2)
    versions.table_sent(SAMPLER)

    changes = versions.written(record(3))

    assert changes == [
        AdapterPublished(number=3, record=record(3)),
        VersionRetired(number=4, adapter=ONE, version=1),
    ]
    with pytest.raises(VersionNotFound):
        versions.admit(ALICE, ONE, 1)


def test_a_version_in_use_is_retired_only_when_its_last_request_ended():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    pins = [versions.admit(ALICE, ONE, None), versions.admit(ALICE, ONE, 1)]

    assert versions.written(record(2)) == [AdapterPublished(number=2, record=record(2))]
    assert versions.unpin(pins[0]) == []
    assert versions.unpin(pins[1]) == [VersionRetired(number=3, adapter=ONE, version=1)]


def test_a_version_that_is_closing_takes_no_new_request_and_is_still_served():
    versions = with_versions(1, keep=1)
    versions.admit(ALICE, ONE, 1)
    versions.written(record(2))

    with pytest.raises(VersionNotFound):
        versions.admit(ALICE, ONE, 1)
    assert [r.number for r in versions.table().records] == [1, 2]
    assert [r.number for r in versions.table(ALICE).records] == [2]


def test_files_are_dropped_when_every_sampler_has_let_go():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    versions.table_sent(OTHER_SAMPLER)
    versions.written(record(2))

    assert versions.released(SAMPLER, key(1)) == []
    assert versions.released(OTHER_SAMPLER, key(1)) == [Drop(key(1))]
    assert versions.released(OTHER_SAMPLER, key(1)) == []


def test_a_dead_sampler_counts_as_having_let_go():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    versions.table_sent(OTHER_SAMPLER)
    versions.written(record(2))
    versions.released(SAMPLER, key(1))

    assert versions.sampler_lost(OTHER_SAMPLER) == [Drop(key(1))]


def test_a_sampler_that_comes_later_is_not_waited_for():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    versions.written(record(2))
    versions.table_sent(OTHER_SAMPLER)

    assert versions.released(SAMPLER, key(1)) == [Drop(key(1))]


def test_without_samplers_files_are_dropped_at_once():
    versions = with_versions(1, keep=1)

    assert versions.written(record(2))[1:] == [
        VersionRetired(number=3, adapter=ONE, version=1),
        Drop(key(1)),
    ]


def test_a_deleted_adapter_goes_with_one_event_and_every_version_is_dropped():
    versions = with_versions(1, 2)
    versions.table_sent(SAMPLER)

    assert versions.deleted(ONE) == [AdapterDeleted(number=3, adapter=ONE)]
    assert versions.table().records == ()
    assert versions.released(SAMPLER, key(2)) == [Drop(key(2))]
    assert versions.released(SAMPLER, key(1)) == [Drop(key(1))]


def test_a_deleted_adapter_waits_for_the_requests_it_has_and_takes_no_more():
    versions = with_versions(1)
    pin = versions.admit(ALICE, ONE, None)

    assert versions.deleted(ONE) == []
    with pytest.raises(VersionNotFound):
        versions.admit(ALICE, ONE, None)
    assert versions.unpin(pin) == [AdapterDeleted(number=2, adapter=ONE), Drop(key(1))]


def test_a_starting_trainer_fills_the_table():
    versions = Versions(keep=4)

    changes = versions.rebuild([record(2), record(1), record(1, "ad-2", BOB)])

    assert [(c.number, c.record.adapter, c.record.number) for c in changes] == [
        (1, "ad-1", 1),
        (2, "ad-1", 2),
        (3, "ad-2", 1),
    ]
    assert versions.table().last_event == 3


def test_a_restarted_trainer_changes_nothing_when_its_disk_is_as_before():
    versions = with_versions(1, 2)

    assert versions.rebuild([record(1), record(2)]) == []


def test_a_version_that_was_written_just_before_the_trainer_died_is_announced():
    versions = with_versions(1)

    assert versions.rebuild([record(1), record(2)]) == [AdapterPublished(number=2, record=record(2))]


def test_a_version_whose_files_vanished_is_retired():
    versions = with_versions(1, 2)
    pin = versions.admit(ALICE, ONE, 1)

    assert versions.rebuild([record(2)]) == [VersionRetired(number=3, adapter=ONE, version=1)]
    assert versions.unpin(pin) == []


def test_more_versions_than_are_kept_are_retired_when_a_trainer_brings_them():
    changes = Versions(keep=1).rebuild([record(1), record(2)])

    assert changes[2:] == [VersionRetired(number=3, adapter=ONE, version=1), Drop(key(1))]


def test_a_dropped_version_that_turns_up_again_is_dropped_again_and_never_announced():
    versions = with_versions(1, 2, keep=1)

    assert versions.rebuild([record(1), record(2)]) == [Drop(key(1))]


def test_versions_of_a_deleted_adapter_that_turn_up_again_are_dropped_again():
    versions = with_versions(1)
    versions.deleted(ONE)

    assert versions.rebuild([record(1)]) == [Drop(key(1))]


def test_a_retired_version_that_a_sampler_still_holds_survives_a_restart_of_the_trainer():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    versions.written(record(2))

    assert versions.rebuild([record(1), record(2)]) == []
    assert versions.released(SAMPLER, key(1)) == [Drop(key(1))]


# --- held versions, and those that are deleted by name ----------------------------------------------


def numbers(versions: Versions) -> list[int]:
    return [each.number for each in versions.table(ALICE).records]


def test_held_versions_are_neither_counted_nor_retired_by_newer_ones():
    versions = Versions(keep=1)
    for number in range(1, 7):
        versions.written(record(number, held=number in (1, 3, 4)))

    assert numbers(versions) == [1, 3, 4, 6]


def test_latest_is_the_newest_version_held_or_not():
    versions = Versions(keep=1)
    versions.written(record(1))
    versions.written(record(2, held=True))

    assert versions.admit(ALICE, ONE, None) == key(2)
    assert versions.newest(ONE) == 2


@pytest.mark.parametrize("restart", ["trainer", "daemon"])
def test_held_versions_survive_a_restart(restart: str):
    written = [record(number, held=number == 1) for number in range(1, 5)]
    versions = Versions(keep=2)
    for each in written:
        versions.written(each)

    on_disk = [written[0], *written[2:]]
    after = versions if restart == "trainer" else Versions(keep=2)
    after.rebuild(on_disk)

    assert numbers(after) == [1, 3, 4]


def test_a_held_version_that_could_not_be_read_for_once_is_not_taken_for_one_that_was_retired():
    versions = Versions(keep=1)
    for number in (1, 2, 3):
        versions.written(record(number, held=number == 1))
    versions.rebuild([record(3)])

    changes = versions.rebuild([record(1, held=True), record(3)])

    assert [type(change) for change in changes] == [AdapterPublished]
    assert sorted(numbers(versions)) == [1, 3]


def test_a_request_on_a_version_that_vanished_and_came_back_still_holds_it():
    versions = with_versions(1)
    pin = versions.admit(ALICE, ONE, 1)
    versions.rebuild([])
    versions.rebuild([record(1)])

    assert versions.delete(ALICE, key(1)) == []
    assert [type(change) for change in versions.unpin(pin)] == [VersionRetired, Drop]


@pytest.mark.parametrize("held", [True, False])
def test_a_deleted_version_is_retired_and_dropped(held: bool):
    versions = Versions(keep=4)
    versions.written(record(1, held=held))
    versions.written(record(2))

    assert versions.delete(ALICE, key(1)) == [VersionRetired(number=3, adapter=ONE, version=1), Drop(key(1))]
    assert versions.delete(ALICE, key(1)) == []
    assert numbers(versions) == [2]


def test_a_deleted_version_ends_its_requests_first_and_takes_no_new_one():
    versions = Versions(keep=4)
    versions.written(record(1, held=True))
    pin = versions.admit(ALICE, ONE, 1)

    assert versions.delete(ALICE, key(1)) == []
    with pytest.raises(VersionNotFound):
        versions.admit(ALICE, ONE, 1)
    assert versions.unpin(pin)[0] == VersionRetired(number=2, adapter=ONE, version=1)


def test_deleting_the_newest_version_makes_the_one_before_it_the_latest():
    versions = with_versions(1, 2)

    versions.delete(ALICE, key(2))

    assert versions.admit(ALICE, ONE, None) == key(1)
    assert versions.newest(ONE) == 1
    versions.delete(ALICE, key(1))
    assert versions.newest(ONE) == 0


def test_the_older_ones_survive_the_deletion_of_a_newer_one_and_a_restart():
    versions = with_versions(1, 2)
    versions.delete(ALICE, key(2))

    versions.rebuild([])
    changes = versions.rebuild([record(1)])

    assert [type(change) for change in changes] == [AdapterPublished]


def test_another_tenants_version_is_not_deleted():
    versions = with_versions(1)

    assert versions.delete(BOB, key(1)) == []
    assert numbers(versions) == [1]


def test_a_deleted_version_that_turns_up_again_is_dropped_again_and_never_announced():
    versions = Versions(keep=4)
    versions.written(record(1, held=True))
    versions.written(record(2, held=True))
    versions.delete(ALICE, key(1))

    assert versions.rebuild([record(1, held=True), record(2, held=True)]) == [Drop(key(1))]


def test_a_version_that_is_deleted_before_the_disk_is_known_goes_when_it_is():
    versions = Versions(keep=4)
    versions.delete(ALICE, key(1))
    versions.delete(BOB, key(2))

    changes = versions.rebuild([record(1, held=True), record(2, held=True)])

    assert changes == [Drop(key(1)), AdapterPublished(number=1, record=record(2, held=True))]


def test_held_versions_of_a_deleted_adapter_go_with_it():
    versions = Versions(keep=4)
    versions.written(record(1, held=True))

    assert versions.deleted(ONE) == [AdapterDeleted(number=2, adapter=ONE), Drop(key(1))]
    assert versions.rebuild([record(1, held=True)]) == [Drop(key(1))]


# --- what samplers that read the table hold ----------------------------------------------------------


def test_a_sampler_that_read_no_table_yet_holds_nothing():
    versions = with_versions(1, keep=1)

    assert versions.written(record(2))[-1] == Drop(key(1))


def test_a_sampler_that_reads_a_table_again_holds_nothing_that_it_lacks():
    versions = with_versions(1, keep=1)
    versions.table_sent(SAMPLER)
    versions.table_sent(OTHER_SAMPLER)
    versions.written(record(2))

    assert versions.table_sent(SAMPLER) == []
    assert versions.released(OTHER_SAMPLER, key(1)) == [Drop(key(1))]


def test_a_version_whose_publish_is_under_way_outlives_a_restart_of_the_daemon():
    versions = Versions(keep=2)

    versions.rebuild([record(number) for number in range(1, 6)], lambda each: each.number in (1, 4))

    assert [each.number for each in versions.table().records] == [1, 4, 5]
    versions.pin(key(1))
    changes = versions.written(record(6))
    assert {each.version for each in changes if isinstance(each, VersionRetired)} == {4}
    assert [type(each) for each in versions.unpin(key(1))] == [VersionRetired, Drop]
