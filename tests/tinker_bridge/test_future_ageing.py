"""Which results are let go of: whose, in which order, and what is left of them."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.errors import RequestConflict, ResultExpired
from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.test_future_table import begun, ended
from loractl.tests.tinker_bridge.test_futures import ANN, BEN, counting, futures, run, start
from loractl.tinker_bridge.future_ageing import excess, let_go
from loractl.tinker_bridge.future_rows import Aged, Begun, Decided, Ended
from loractl.tinker_bridge.future_table import FutureTable
from loractl.tinker_bridge.progress import Progress
from loractl.tinker_bridge.results import Result

LARGE = 20_000


def kept(
    table: FutureTable, id_: str, *, at: float, tenant: TenantId = ANN, session: str = "s", size: int = LARGE
) -> None:
    row = begun(id_, session=session)
    mine = Begun(**{name: getattr(row, name) for name in Begun.__slots__} | {"tenant": tenant})
    result = Ended(id=id_, number=1, result=Result(b"x" * size), ended_unix_s=at)
    table.commit([mine, Decided(id=id_, decided=b"found"), result])


def aged(most_bytes: int, *read: str, live: tuple[str, ...] = ("s",), before: float = 0.0) -> Aged:
    return Aged(before_unix_s=before, live_sessions=live, most_bytes=most_bytes, read=read)


def there(table: FutureTable, *ids: str) -> list[str]:
    """Of which of them the result can be read."""
    return [id_ for id_ in ids if (found := table.find(id_)) is not None and found.result is not None]


def test_those_who_have_the_most_give_down_to_a_common_level() -> None:
    assert excess({"ann": 50, "ben": 10, "cat": 30}, 60) == {"ann": 25, "cat": 5}
    assert excess({"ann": 50, "ben": 10}, 60) == {}
    assert excess({"ann": 50, "ben": 10}, 30) == {"ann": 30}
    assert excess({}, 0) == {}


def test_one_tenants_bytes_cost_nobody_else_a_result(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    kept(table, "bens", at=1.0, tenant=BEN)
    for number in range(4):
        kept(table, str(number), at=2.0 + number)

    table.commit([aged(4 * LARGE)])

    assert there(table, "bens", "0", "1", "2", "3") == ["bens", "2", "3"]


def test_ended_sessions_results_go_before_those_of_live_ones_and_read_before_unread(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    for at, id_ in enumerate(("unread", "read", "over")):
        kept(table, id_, at=at, session="" if id_ == "over" else "s")

    table.commit([aged(int(2.5 * LARGE), "read")])
    assert table.find("over") is None
    assert there(table, "unread", "read") == ["unread", "read"]

    table.commit([aged(int(1.5 * LARGE))])
    assert there(table, "unread", "read") == ["unread"]


def test_of_a_live_sessions_result_key_and_digest_stay_and_what_was_decided(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    kept(table, "a", at=1.0)

    table.commit([aged(LARGE // 2, "a")])

    left = table.find("a")
    assert left is not None
    assert (left.key, left.digest, left.decided, left.expired) == (("a",), b"d", b"found", True)
    assert table.unfinished() == []


def test_a_request_whose_result_went_ends_again_as_it_did_and_stays_the_only_one_of_its_key(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        given: list[tuple[str, bytes]] = []

        async def work(progress: Progress) -> Result:
            given.append((progress.origin.token("x"), progress.decided))
            if not progress.decided:
                await progress.keep(b"found")
            return Result(b"1" * LARGE)

        with futures(tmp_path, kept_bytes=LARGE // 2, recent_bytes=1) as table:
            future = start(table, work, session="s")
            await table.wait(ANN, future.id, 30)
            await start(table, key=("other",)).done.wait()  # pushes it out of memory
            await table.forget_old(["s"])

            with pytest.raises(ResultExpired):
                await table.wait(ANN, future.id, 30)
            with pytest.raises(RequestConflict):
                start(table, digest=b"other")
            again = start(table, work, session="s")

            assert again.id == future.id
            assert isinstance(await table.wait(ANN, again.id, 30), Result)
            assert given == [(given[0][0], b""), (given[0][0], b"found")]
            assert len(table) == 0

    run(test)


def test_a_result_that_was_read_is_known_to_be_and_one_that_was_not_stays(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path, kept_bytes=int(1.5 * LARGE), recent_bytes=1) as table:
            ids = []
            for name in ("unread", "read", "last"):
                future = start(table, counting(Result(b"1" * LARGE), []), key=(name,), session="s")
                await future.done.wait()
                ids.append(future.id)
            for id_ in ids[1:]:
                await table.wait(ANN, id_, 30)

            await table.forget_old(["s"])

            assert isinstance(await table.wait(ANN, ids[0], 30), Result)
            with pytest.raises(ResultExpired):
                await table.wait(ANN, ids[1], 30)

    run(test)


def test_the_file_gives_back_what_its_results_took(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    for number in range(8):
        kept(table, str(number), at=1.0, size=2**20, session="")
    before = table._row("PRAGMA page_count")[0]

    table.commit([aged(10**9, before=2.0)])

    assert table._row("PRAGMA page_count")[0] < before
    assert table._row("PRAGMA journal_size_limit")[0] > 0


def test_no_round_looks_at_rows_that_it_lets_be(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    table.commit([begun("a"), ended("a")])
    plans: list[str] = []

    def explained(sql: str, *values: object) -> list[Any]:
        plans.extend(row[3] for row in table._rows(f"EXPLAIN QUERY PLAN {sql}", *values))
        return table._rows(sql, *values)

    let_go(explained, aged(0, "b", before=1.0))

    assert len(plans) > 8
    assert [each for each in plans if "SCAN futures" in each] == []


def test_a_file_of_the_version_before_is_counted_when_it_is_opened(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    kept(table, "a", at=1.0)
    table.close()
    with sqlite3.connect(tmp_path / "f.sqlite") as db:
        for sql in (
            "DROP TABLE totals",
            "DROP TRIGGER futures_sized",
            "DROP TRIGGER futures_deleted",
            "DROP INDEX futures_of_tenant",
            "ALTER TABLE futures DROP COLUMN read",
            "PRAGMA user_version = 2",
        ):
            db.execute(sql)

    again = FutureTable(tmp_path / "f.sqlite")

    assert again._rows("SELECT * FROM totals") == [("ann", LARGE + 512)]
    again.commit([aged(0, "a")])
    assert there(again, "a") == []
