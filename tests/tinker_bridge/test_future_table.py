"""The futures' file: commits of many, what is left after a restart, what goes, and disks that fail."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from loractl.bus.config import CRASH_AT, subprocess_environment
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.test_futures import ANN, endless, futures, said, start
from loractl.tinker_bridge.future_journal import FutureJournal
from loractl.tinker_bridge.future_rows import Aged, Asked, Begun, Change, Ended, Unchanged
from loractl.tinker_bridge.future_table import FutureTable
from loractl.tinker_bridge.progress import Progress
from loractl.tinker_bridge.results import Result, json_result


def begun(id_: str, *, session: str = "", body: bytes = b"body") -> Begun:
    return Begun(
        id=id_,
        tenant=ANN,
        key=(id_,),
        digest=b"d",
        session=session,
        scope="",
        group=(),
        asked=Asked(ANN, "/there", body, "application/x-protobuf", "zstd"),
        began_unix_s=1.0,
    )


def ended(id_: str, number: int = 1, at: float = 2.0, fields: object = ()) -> Ended:
    return Ended(id=id_, number=number, result=json_result(fields), ended_unix_s=at)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_request_is_kept_as_it_came_until_its_result_is_there(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    body = bytes(range(256)) * 4096
    table.commit([begun("a", body=body), begun("b")])

    again = FutureTable(tmp_path / "f.sqlite")

    assert again.asked("a") == Asked(ANN, "/there", body, "application/x-protobuf", "zstd", ("a",))
    assert [each.id for each in again.unfinished()] == ["a", "b"]
    table.commit([ended("a", fields={"x": 1})])
    assert [each.id for each in again.unfinished()] == ["b"]
    assert again.find("a").result == json_result({"x": 1})  # type: ignore[union-attr]
    assert again.find("c") is None


def test_written_twice_the_first_request_stands(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")

    table.commit([begun("a", body=b"first"), begun("a", body=b"second")])

    assert table.asked("a").body == b"first"
    assert len(table.unfinished()) == 1


def test_what_is_old_goes_but_for_live_sessions_and_what_has_not_ended(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    rows = [begun("open"), begun("old"), begun("live", session="s"), begun("young")]
    table.commit([*rows, ended("old", 1, 2.0), ended("live", 2, 2.0), ended("young", 3, 9.0)])

    table.commit([Aged(before_unix_s=5.0, live_sessions=("s",), most_bytes=10**9)])

    assert [bool(table.find(each.id)) for each in rows] == [True, False, True, True]


def test_beyond_its_bytes_the_oldest_results_go_whosever_they_are(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    for number in range(4):
        table.commit([begun(str(number), session="s"), ended(str(number), number, float(number))])

    table.commit([Aged(before_unix_s=0.0, live_sessions=("s",), most_bytes=1100)])

    assert [bool(table.find(str(number))) for number in range(4)] == [False, False, True, True]


def test_changes_are_remembered_by_whose_they_are(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    change = Change(tenant=ANN, what="DELETE /x", key="k", done=True, unix_s=1.0)

    table.commit([change])

    assert table.change(ANN, "DELETE /x", "k") == change
    assert table.change(TenantId("ben"), "DELETE /x", "k") is None
    table.commit([Unchanged(tenant=ANN, what="DELETE /x", key="k")])
    assert table.change(ANN, "DELETE /x", "k") is None


def test_what_comes_together_is_durable_together(tmp_path: Path) -> None:
    async def test() -> None:
        journal = FutureJournal(tmp_path / "f.sqlite")
        await asyncio.gather(*(journal.write(begun(str(number))) for number in range(200)))
        journal.close()

        assert len(FutureTable(tmp_path / "f.sqlite").unfinished()) == 200

    run(test)


WRITES = """
import asyncio, sys
from pathlib import Path
from loractl.tests.tinker_bridge.test_future_table import begun
from loractl.tinker_bridge.future_journal import FutureJournal

async def write():
    journal = FutureJournal(Path(sys.argv[1]))
    await asyncio.gather(*(journal.write(begun(str(number))) for number in range(3)))
    print("told")

asyncio.run(write())
"""


@pytest.mark.parametrize(("point", "kept"), [("futures.written", 0), ("futures.committed", 1)])
def test_who_dies_around_a_commit_has_told_nobody_and_left_all_of_it_or_nothing(
    tmp_path: Path, point: str, kept: int
) -> None:
    file = tmp_path / "f.sqlite"
    environment = subprocess_environment({CRASH_AT: point})

    died = subprocess.run(
        [sys.executable, "-c", WRITES, str(file)], env=environment, capture_output=True, check=False
    )

    assert (died.returncode, died.stdout) == (-signal.SIGKILL, b"")
    assert (len(FutureTable(file).unfinished()) > 0) == bool(kept)


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "f.sqlite") as db:
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(StorageFailed, match="newer loractl"):
        FutureTable(tmp_path / "f.sqlite")


class Disk:
    """The futures' file takes nothing for a while, as if the disk were full."""

    def __init__(self, state: Path) -> None:
        self._file = state / "futures.sqlite"

    def fails(self) -> None:
        for change in ("INSERT", "UPDATE"):
            self._do(
                f"CREATE TRIGGER full_{change} BEFORE {change} ON futures"
                " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )

    def works(self) -> None:
        for change in ("INSERT", "UPDATE"):
            self._do(f"DROP TRIGGER full_{change}")

    def _do(self, sql: str) -> None:
        db = sqlite3.connect(self._file, isolation_level=None)
        db.execute(sql)
        db.close()


def test_an_id_is_not_told_while_its_request_cannot_be_written_and_is_when_it_can(tmp_path: Path) -> None:
    async def test() -> None:
        disk = Disk(tmp_path)
        with futures(tmp_path) as table:
            await start(table, key=("warm",)).done.wait()
            runs: list[int] = []

            async def work(progress: Progress) -> Result:
                runs.append(1)
                return await endless(progress)

            disk.fails()
            future = start(table, work, key=("new",))
            with pytest.raises(StorageFailed):
                await table.durable(future)
            disk.works()

            assert start(table, key=("new",)) is future
            await table.durable(future)
            assert runs == [1]

        with futures(tmp_path) as table:
            assert [each.id for each in table.unfinished()] == [future.id]

    run(test)


def test_a_result_is_told_when_it_could_be_written_and_says_so_meanwhile(tmp_path: Path) -> None:
    async def test() -> None:
        disk, gate = Disk(tmp_path), asyncio.Event()

        async def work(_: Progress) -> Result:
            await gate.wait()
            return json_result({"x": 1})

        with futures(tmp_path) as table:
            future = start(table, work)
            await table.durable(future)
            disk.fails()
            gate.set()

            waiting = await table.wait(ANN, future.id, 0.2)

            assert isinstance(waiting, Progress)
            assert "cannot be written" in waiting.reason
            disk.works()
            assert said(await table.wait(ANN, future.id, 30)) == {"x": 1}

    run(test)


def test_a_full_disk_is_called_by_its_name_and_the_next_commit_goes_well(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    (pages,) = table._row("PRAGMA page_count")
    table._rows(f"PRAGMA max_page_count = {pages + 2}")

    with pytest.raises(StorageFailed, match="full"):
        table.commit([begun(str(number), body=bytes(9000)) for number in range(9)])

    table.commit([begun("small")])
    assert [each.id for each in table.unfinished()] == ["small"]


def test_a_file_that_cannot_be_read_is_our_error_not_sqlites(tmp_path: Path) -> None:
    table = FutureTable(tmp_path / "f.sqlite")
    with closing(sqlite3.connect(tmp_path / "f.sqlite")) as other:
        other.execute("DROP TABLE futures")

    with pytest.raises(StorageFailed, match="cannot be read"):
        table.find("a")
