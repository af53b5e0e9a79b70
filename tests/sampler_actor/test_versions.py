"""The version table: what is loaded, used and let go of, decided without an engine."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from loractl.bus.errors import VersionNotFound
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.messages import LoraSpec, VersionRecord
from loractl.sampler_actor.engine import VersionKey, key_of
from loractl.sampler_actor.versions import Decision, Load, LoadedVersions, Release, Remove

ADAPTER = AdapterId("ad-1")


def record(number: int, adapter: AdapterId = ADAPTER) -> VersionRecord:
    return VersionRecord(
        adapter=adapter,
        tenant=TenantId("local"),
        name="poet",
        number=number,
        step=number,
        directory=f"/versions/{number}",
        digest="",
        lora=LoraSpec(rank=4, alpha=8, seed=0),
        modules=14,
        probe_tokens=(),
        probe_logprobs=(),
    )


def key(number: int, adapter: AdapterId = ADAPTER) -> VersionKey:
    return VersionKey(adapter, number)


def use(versions: LoadedVersions, number: int) -> list[Decision]:
    """A request comes and its turn is there at once."""
    versions.pin(key(number))
    return versions.need(key(number))


def end(versions: LoadedVersions, number: int) -> list[Decision]:
    return [*versions.done(key(number)), *versions.unpin(key(number))]


def loaded(versions: LoadedVersions, *numbers: int) -> None:
    """Bring versions into memory, used by nobody, the last one most recently."""
    for number in numbers:
        versions.learn([record(number)])
        assert use(versions, number) == [Load(record(number))]
        assert versions.loaded(key(number)) == []
        end(versions, number)


def test_a_version_is_loaded_when_it_is_first_needed():
    versions = LoadedVersions(max_loaded=4)
    versions.learn([record(1)])

    assert versions.phase(key(1)) == "known"
    assert use(versions, 1) == [Load(record(1))]
    assert use(versions, 1) == []


def test_a_request_that_waits_for_its_turn_holds_a_version_without_loading_it():
    versions = LoadedVersions(max_loaded=4)
    versions.learn([record(1)])
    versions.pin(key(1))

    assert versions.phase(key(1)) == "known"
    assert versions.retire(key(1)) == []
    assert versions.need(key(1)) == [Load(record(1))]


def test_an_unknown_version_cannot_be_used():
    with pytest.raises(VersionNotFound):
        LoadedVersions(max_loaded=4).pin(key(1))


def test_the_least_recently_used_version_makes_room():
    versions = LoadedVersions(max_loaded=2)
    loaded(versions, 1, 2)
    use(versions, 1)
    end(versions, 1)
    versions.learn([record(3)])

    assert use(versions, 3) == [Load(record(3)), Remove(key(2))]


def test_a_version_in_use_stays_even_when_there_is_no_room():
    versions = LoadedVersions(max_loaded=1)
    loaded(versions, 1)
    use(versions, 1)
    versions.learn([record(2)])

    assert use(versions, 2) == [Load(record(2))]
    assert versions.loaded(key(2)) == []
    assert end(versions, 1) == [Remove(key(1))]


def test_an_evicted_version_is_loaded_again_on_demand():
    versions = LoadedVersions(max_loaded=1)
    loaded(versions, 1)
    versions.learn([record(2)])
    use(versions, 2)
    versions.loaded(key(2))
    versions.removed(key(1))
    end(versions, 2)

    assert use(versions, 1) == [Load(record(1)), Remove(key(2))]


def test_a_version_needed_while_it_is_being_removed_is_loaded_after_that():
    versions = LoadedVersions(max_loaded=1)
    loaded(versions, 1)
    versions.learn([record(2)])
    use(versions, 2)

    assert use(versions, 1) == []
    assert versions.removed(key(1)) == [Load(record(1))]


def test_a_retired_version_goes_when_its_last_request_has_ended():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1)
    use(versions, 1)
    versions.pin(key(1))

    assert versions.retire(key(1)) == []
    assert end(versions, 1) == []
    assert versions.unpin(key(1)) == [Remove(key(1))]
    assert versions.removed(key(1)) == [Release(key(1))]


def test_a_retired_version_takes_no_new_request():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1)
    versions.pin(key(1))
    versions.retire(key(1))

    with pytest.raises(VersionNotFound):
        versions.pin(key(1))


def test_a_version_never_heard_of_is_released_when_it_retires():
    assert LoadedVersions(max_loaded=4).retire(key(7)) == [Release(key(7))]


@pytest.mark.parametrize("told_by", ["event", "table"])
def test_a_version_that_vanished_for_once_is_served_again_when_it_is_told_of_again(told_by: str):
    versions = LoadedVersions(max_loaded=4)
    versions.learn([record(1), record(2)])
    versions.retire(key(1))
    versions.retire(key(2))

    new = versions.learn([record(1)]) if told_by == "event" else versions.reconcile([record(1)])[0]

    assert new == [record(1)]
    assert use(versions, 1) == [Load(record(1))]
    assert not versions.knows(key(2))


def test_a_version_that_is_told_of_again_before_it_was_let_go_of_stays():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1, 2)
    versions.pin(key(1))
    assert versions.retire(key(1)) == []
    assert versions.retire(key(2)) == [Remove(key(2))]

    assert versions.learn([record(1), record(2)]) == [record(1), record(2)]

    assert versions.unpin(key(1)) == []
    assert versions.phase(key(1)) == "loaded"
    assert versions.removed(key(2)) == []
    assert use(versions, 2) == [Load(record(2))]


def test_a_deleted_adapter_takes_all_its_versions_along():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1)
    versions.learn([record(2), record(1, AdapterId("ad-2"))])

    assert versions.delete(ADAPTER) == [Remove(key(1)), Release(key(2))]
    assert versions.knows(key(1, AdapterId("ad-2")))


def test_what_is_missing_from_the_whole_truth_has_been_retired():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1)

    new, decisions = versions.reconcile([record(2)])

    assert new == [record(2)]
    assert decisions == [Remove(key(1))]


def test_a_version_that_could_not_be_loaded_is_tried_again_by_the_next_request():
    versions = LoadedVersions(max_loaded=4)
    versions.learn([record(1)])
    use(versions, 1)

    assert versions.load_failed(key(1)) == []
    assert end(versions, 1) == []
    assert use(versions, 1) == [Load(record(1))]


def test_a_new_engine_gets_what_the_dead_one_had():
    versions = LoadedVersions(max_loaded=4)
    loaded(versions, 1, 2, 3, 4)
    use(versions, 2)
    versions.retire(key(2))
    versions.pin(key(3))
    versions.retire(key(3))

    decisions = versions.engine_lost([key(1), key(2), key(3)])

    assert decisions == [Load(record(1)), Load(record(2))]
    assert versions.phase(key(3)) == "known"
    assert versions.phase(key(4)) == "loaded"


class VersionLife(RuleBasedStateMachine):
    """Publish, use, retire and lose engines in any order; loads and removals take their time."""

    numbers = Bundle("numbers")

    def __init__(self) -> None:
        super().__init__()
        self.versions = LoadedVersions(max_loaded=2)
        self.next_number = 1
        self.waiting: Counter[VersionKey] = Counter()
        self.running: Counter[VersionKey] = Counter()
        self.retired: set[VersionKey] = set()
        self.released: list[VersionKey] = []
        self.loading: list[VersionKey] = []
        self.removing: list[VersionKey] = []
        self.engine: set[VersionKey] = set()

    def perform(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Load(record):
                    assert key_of(record) not in {*self.loading, *self.removing, *self.engine}
                    self.loading.append(key_of(record))
                case Remove(gone):
                    assert gone in self.engine
                    assert not self.running[gone], "removed under a request's feet"
                    self.removing.append(gone)
                case Release(gone):
                    assert gone not in {*self.loading, *self.removing, *self.engine}
                    assert gone in self.retired
                    assert not self.waiting[gone] + self.running[gone], "files gone under a request's feet"
                    self.released.append(gone)

    @rule(target=numbers)
    def publish(self) -> int:
        number = self.next_number
        self.next_number += 1
        self.versions.learn([record(number)])
        return number

    @rule(number=numbers)
    def publish_again(self, number: int) -> None:
        """Its files vanished for once; or it is in the table once more."""
        gone = key(number) in self.retired
        assert self.versions.learn([record(number)]) == ([record(number)] if gone else [])
        if gone:
            self.retired.remove(key(number))
            self.released = [each for each in self.released if each != key(number)]

    @rule(number=numbers)
    def arrive(self, number: int) -> None:
        if key(number) in self.retired:
            with pytest.raises(VersionNotFound):
                self.versions.pin(key(number))
        else:
            self.versions.pin(key(number))
            self.waiting[key(number)] += 1

    @rule(number=numbers)
    def run(self, number: int) -> None:
        if self.waiting[key(number)]:
            self.waiting[key(number)] -= 1
            self.running[key(number)] += 1
            self.perform(self.versions.need(key(number)))

    @rule(number=numbers)
    def finish(self, number: int) -> None:
        if self.running[key(number)]:
            self.running[key(number)] -= 1
            self.perform(self.versions.done(key(number)))
            self.perform(self.versions.unpin(key(number)))

    @rule(number=numbers)
    def give_up(self, number: int) -> None:
        if self.waiting[key(number)]:
            self.waiting[key(number)] -= 1
            self.perform(self.versions.unpin(key(number)))

    @rule(number=numbers)
    def retire(self, number: int) -> None:
        for older in range(1, number + 1):
            if key(older) not in self.retired:
                self.retired.add(key(older))
                self.perform(self.versions.retire(key(older)))

    @precondition(lambda self: self.loading)
    @rule(works=st.booleans())
    def load(self, works: bool) -> None:
        done = self.loading.pop(0)
        if works:
            self.engine.add(done)
            self.perform(self.versions.loaded(done))
        else:
            self.perform(self.versions.load_failed(done))

    @precondition(lambda self: self.removing)
    @rule()
    def remove(self) -> None:
        done = self.removing.pop(0)
        self.engine.discard(done)
        self.perform(self.versions.removed(done))

    @rule()
    def lose_engine(self) -> None:
        lost = [k for k in self.engine if k not in self.removing]
        self.engine -= set(lost)
        self.perform(self.versions.engine_lost(lost))

    @invariant()
    def the_table_agrees_with_the_engine(self) -> None:
        held = {*self.loading, *self.engine} - {*self.removing}
        assert set(self.versions.in_memory()) == held

    @invariant()
    def only_versions_in_use_exceed_the_bound(self) -> None:
        held = self.versions.in_memory()
        idle = [k for k in held if self.versions.phase(k) == "loaded" and not self.running[k]]
        assert len(held) <= 2 or not idle

    def teardown(self) -> None:
        for number in range(1, self.next_number):
            while self.running[key(number)]:
                self.finish(number)
            while self.waiting[key(number)]:
                self.give_up(number)
        self.retire(self.next_number - 1)
        while self.loading or self.removing:
            while self.loading:
                self.load(works=True)
            while self.removing:
                self.remove()
        assert sorted(self.released) == sorted(self.retired), "every retired version is released, once"
        assert not self.engine


TestVersionLife = VersionLife.TestCase
TestVersionLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
