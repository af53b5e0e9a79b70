"""The bridge's memory: what was put is there after a restart, and everyone sees their own only."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import SessionEnded, SessionNotFound, StorageFailed
from loractl.bus.ids import AdapterId, LaneId, TenantId
from loractl.bus.messages import LoraSpec
from loractl.tinker_bridge.records import CheckpointRecord, RunRecord, SessionRecord, parsed_path, tinker_path
from loractl.tinker_bridge.sessions import Sessions
from loractl.tinker_bridge.store import Store

ANN, BEN = TenantId("ann"), TenantId("ben")


def checkpoint(name: str, *, created: float = 1.0, run: str = "s:train:0") -> CheckpointRecord:
    return CheckpointRecord(
        id=tinker_path(run, "training", name),
        tenant=ANN,
        parent=run,
        created_unix_s=created,
        kind="training",
        name=name,
        adapter=AdapterId("ad-1"),
        base_model="tiny",
        lora=LoraSpec(rank=8, alpha=32.0, seed=1),
        user_metadata={"renderer": "qwen3"},
    )


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.sqlite")
    run = RunRecord(
        id="s:train:0",
        tenant=ANN,
        parent="s",
        created_unix_s=1.0,
        last_request_unix_s=2.0,
        adapter=AdapterId("ad-1"),
        lane=LaneId("ln-1"),
        base_model="tiny",
        lora=LoraSpec(rank=8, alpha=32.0, seed=1),
        user_metadata={"nested": {"a": [1, None]}},
    )
    first.put(run)
    first.put(checkpoint("a"))
    first.put(replace(run, state="lost"))
    first.close()

    again = Store(tmp_path / "s.sqlite")

    assert again.find(RunRecord, run.id) == replace(run, state="lost")
    assert again.of_parent(CheckpointRecord, run.id) == [checkpoint("a")]
    assert again.secret == first.secret


def test_everyone_sees_their_own_only_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    for number in range(5):
        store.put(checkpoint(f"c{number}", created=float(number)))
    store.put(replace(checkpoint("theirs", run="x:train:0"), tenant=BEN))

    page = store.page(CheckpointRecord, ANN, limit=2, offset=1)

    assert [each.name for each in page] == ["c3", "c2"]
    assert store.count(CheckpointRecord, ANN) == 5
    assert store.owned(CheckpointRecord, BEN, checkpoint("c1").id) is None
    assert [each.name for each in store.page(CheckpointRecord, BEN, limit=9, offset=0)] == ["theirs"]


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(StorageFailed, match="newer loractl"):
        Store(tmp_path / "s.sqlite")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tinker://",
        "tinker://a/b/c",
        "http://r/weights/x",
        "tinker://r/weights/x/y",
        "tinker://r/weights/",
    ],
)
def test_what_is_no_tinker_path_is_seen_as_none(path: str) -> None:
    assert parsed_path(path) is None
    assert parsed_path(tinker_path("s:train:0", "sampler", "x")) == ("s:train:0", "sampler", "x")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sessions(store: Store, clock: Clock) -> Sessions:
    return Sessions(store, expiry_s=60.0, clock=clock)


def created(table: Sessions) -> str:
    record = table.create(
        ANN, tags=["a"], user_metadata={}, display_name="mine", project=None, sdk_version="0.38.0"
    )
    return record.id


def test_a_session_lives_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    clock = Clock()
    table = sessions(Store(tmp_path / "s.sqlite"), clock)
    silent, heard = created(table), created(table)

    expired = []
    for _ in range(14):
        clock.now += 5
        table.active(ANN, heard)
        expired = table.expired()

    assert [each.id for each in expired] == [silent]


def test_after_a_sleep_of_the_machine_every_live_session_gets_the_whole_time_again(tmp_path: Path) -> None:
    clock = Clock()
    table = sessions(Store(tmp_path / "s.sqlite"), clock)
    session = created(table)

    clock.now += 10_000
    after_waking = table.expired()
    clock.now += 29
    still = table.expired()

    assert after_waking == still == []
    assert table.active(ANN, session).id == session


def test_when_sessions_were_heard_of_is_written_now_and_then(tmp_path: Path) -> None:
    clock, store = Clock(), Store(tmp_path / "s.sqlite")
    table = sessions(store, clock)
    ids = [created(table) for _ in range(3)]
    clock.now += 50
    for each in ids[:2]:
        table.active(ANN, each)

    def written() -> list[float]:
        return [table.owned(ANN, each).last_seen_unix_s for each in ids]

    table.flush(late_s=60)
    early = written()
    table.flush()

    assert early == [1000.0] * 3
    assert written() == [1050.0, 1050.0, 1000.0]


def test_records_are_put_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    table = sessions(store, Clock())
    record = table.active(ANN, created(table))
    other = replace(record, id="other")

    with pytest.raises(UnicodeEncodeError):
        store.put(other, replace(record, display_name="\ud800"))

    assert store.find(SessionRecord, "other") is None
    store.put(other)
    assert store.find(SessionRecord, "other") == other


def test_an_ended_session_says_how_it_ended_and_the_first_word_stands(tmp_path: Path) -> None:
    table = sessions(Store(tmp_path / "s.sqlite"), Clock())
    session = created(table)
    record = table.active(ANN, session)

    assert table.end(record, finished=True, reason="success")
    assert not table.end(record, finished=False)

    with pytest.raises(SessionEnded, match="finished"):
        table.active(ANN, session)
    assert table.owned(ANN, session).status == "finished"


def test_another_tenants_session_is_as_one_that_never_was(tmp_path: Path) -> None:
    table = sessions(Store(tmp_path / "s.sqlite"), Clock())
    session = created(table)

    for wrong in (session, "nothing"):
        with pytest.raises(SessionNotFound):
            table.active(BEN, wrong)
        with pytest.raises(SessionNotFound):
            table.owned(BEN, wrong)


def test_after_a_restart_every_live_session_gets_the_whole_time_again(tmp_path: Path) -> None:
    clock, store = Clock(), Store(tmp_path / "s.sqlite")
    session = created(sessions(store, clock))
    clock.now += 10_000

    table = sessions(store, clock)

    assert table.expired() == []
    assert table.active(ANN, session).display_name == "mine"


def test_a_full_disk_is_called_by_its_name_and_the_next_record_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    ((pages,),) = store._rows(CheckpointRecord.table, "PRAGMA page_count")
    store._rows(CheckpointRecord.table, f"PRAGMA max_page_count = {pages + 2}")

    with pytest.raises(StorageFailed, match="full"):
        store.put(*(replace(checkpoint(f"c{number}"), name="x" * 3000) for number in range(9)))

    store.put(checkpoint("small"))
    assert [each.name for each in store.all(CheckpointRecord)] == ["small"]


def test_a_file_that_cannot_be_read_is_our_error_not_sqlites(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as other:
        other.execute(f"DROP TABLE {RunRecord.table}")

    with pytest.raises(StorageFailed, match="cannot be read"):
        store.find(RunRecord, "r")
    with pytest.raises(StorageFailed, match="cannot be read"):
        store.count(RunRecord, ANN)
