"""Futures: work runs once, its result can be read again by whom it belongs to, for as long as it is kept."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.errors import (
    ActorStopping,
    DaemonGone,
    InvalidData,
    RequestConflict,
    ResultExpired,
    ResultNotFound,
)
from loractl.bus.ids import TenantId
from loractl.bus.messages import WaitCause
from loractl.tinker_bridge.future import Future
from loractl.tinker_bridge.future_journal import FutureJournal
from loractl.tinker_bridge.future_rows import Asked
from loractl.tinker_bridge.futures import Futures
from loractl.tinker_bridge.progress import Progress
from loractl.tinker_bridge.recent import ENTRY_BYTES
from loractl.tinker_bridge.results import Result, json_result

ANN, BEN = TenantId("ann"), TenantId("ben")
KEY = ("seq_id", "1", "of", "model")
SAMPLES = ("samples", "a", "0")
Work = Callable[[Progress], Awaitable[Result]]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def futures(
    state: Path,
    clock: Clock | None = None,
    *,
    kept_bytes: int = 10**6,
    kept_s: float = 100.0,
    recent_bytes: int = 10**6,
) -> Iterator[Futures]:
    """Those of one process; the next one on the same file finds what it left."""
    journal = FutureJournal(state / "futures.sqlite")
    table = Futures(
        journal,
        secret=b"s",
        kept_bytes=kept_bytes,
        kept_s=kept_s,
        clock=clock or Clock(),
        recent_bytes=recent_bytes,
    )
    try:
        yield table
    finally:
        table.close()
        journal.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def counting(result: Result, runs: list[int]) -> Work:
    async def work(_: Progress) -> Result:
        runs.append(1)
        return result

    return work


async def endless(_: Progress) -> Result:
    await asyncio.Event().wait()
    raise AssertionError


def start(
    table: Futures,
    work: Work | None = None,
    *,
    tenant: TenantId = ANN,
    key: tuple[str, ...] = KEY,
    digest: bytes = b"d",
    **more: Any,
) -> Future:
    asked = Asked(tenant, "/there", b"body of " + " ".join(key).encode())
    return table.start(asked, key, digest, work or counting(json_result({}), []), **more)


def said(result: Result | Progress) -> Any:
    assert isinstance(result, Result)
    return json.loads(result.body)


def test_the_same_key_and_content_run_once_and_read_one_result(tmp_path: Path) -> None:
    async def test() -> None:
        runs: list[int] = []
        work = counting(json_result({"a": 1}), runs)
        with futures(tmp_path) as table:
            first, again = start(table, work), start(table, work)

            assert first is again
            assert [said(await table.wait(ANN, first.id, 30)) for _ in range(2)] == [{"a": 1}] * 2
            assert len(runs) == 1

    run(test)


def test_the_same_key_with_other_content_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            future = start(table)

            with pytest.raises(RequestConflict, match="used before"):
                start(table, digest=b"other")
            await table.wait(ANN, future.id, 30)
            with pytest.raises(RequestConflict, match="used before"):
                start(table, digest=b"other")

    run(test)


def test_keys_of_different_tenants_are_different(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            assert start(table).id != start(table, tenant=BEN, digest=b"other").id

    run(test)


def test_another_tenants_result_is_as_one_that_never_was(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            future = start(table)

            for wrong in (future.id, "nothing", "", "a.b"):
                with pytest.raises(ResultNotFound):
                    await table.wait(BEN, wrong, 1)

    run(test)


def test_a_failure_is_a_result_with_whose_fault_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            raise InvalidData("too long")

        with futures(tmp_path) as table:
            result = await table.wait(ANN, start(table, work).id, 5)

            assert said(result) == {"error": "too long", "category": "user"}
            assert isinstance(result, Result)
            assert result.code == "invalid_data"

    run(test)


def test_a_bug_is_told_without_its_insides(tmp_path: Path) -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            raise ZeroDivisionError("secret")

        with futures(tmp_path) as table:
            result = said(await table.wait(ANN, start(table, work).id, 5))

            assert result["category"] == "server"
            assert "secret" not in result["error"]

    run(test)


def test_a_poll_that_comes_too_early_says_what_is_waited_for(tmp_path: Path) -> None:
    class Waiting:
        waits_for = "the trainer is restarting"
        cause: WaitCause = "others"

    async def test() -> None:
        async def work(progress: Progress) -> Result:
            progress.waiting = Waiting()
            return await endless(progress)

        with futures(tmp_path) as table:
            future = start(table, work)

            assert await table.wait(ANN, future.id, 0.01) == future.progress
            assert future.progress.reason == "the trainer is restarting"
            assert len(table) == 1

    run(test)


def test_the_end_of_a_scope_ends_its_work_and_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            first = start(table, endless, scope="s1")
            other = start(table, endless, key=("other",), scope="s2")
            await asyncio.sleep(0)

            table.cancel_scope("s1")

            assert said(await table.wait(ANN, first.id, 30))["error"] == "the request was cancelled"
            assert other.result is None

    run(test)


def test_work_that_is_cancelled_before_it_began_has_an_end(tmp_path: Path) -> None:
    async def test() -> None:
        runs: list[int] = []
        with futures(tmp_path) as table:
            future = start(table, counting(json_result({}), runs), scope="s")

            table.cancel_scope("s")

            assert said(await table.wait(ANN, future.id, 30))["error"] == "the request was cancelled"
            assert runs == []

    run(test)


def test_whoever_waits_when_the_server_stops_is_told_to_ask_again(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            future = start(table, endless)
            waiting = asyncio.create_task(table.wait(ANN, future.id, 30))
            await asyncio.sleep(0)

            table.close()

            with pytest.raises(ActorStopping):
                await waiting

    run(test)


def test_old_results_expire_and_their_readers_are_told_so(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        with futures(tmp_path, clock, kept_s=100.0) as table:
            future = start(table, session="s")
            await table.wait(ANN, future.id, 30)

            clock.now = 101.0
            await table.forget_old(["s"])
            assert said(await table.wait(ANN, future.id, 30)) == {}
            await table.forget_old([])

            with pytest.raises(ResultExpired):
                await table.wait(ANN, future.id, 30)
            with pytest.raises(ResultNotFound):
                await table.wait(BEN, future.id, 5)

    run(test)


def test_results_are_bounded_in_bytes_the_oldest_go(tmp_path: Path) -> None:
    async def test() -> None:
        clock, ids = Clock(), []
        with futures(tmp_path, clock, kept_bytes=2 * 700, recent_bytes=1) as table:
            for number in range(3):
                clock.now += 1
                future = start(table, counting(Result(b"x" * 100), []), key=(str(number),))
                await future.done.wait()
                ids.append(future.id)

            await table.forget_old([])

            with pytest.raises(ResultExpired):
                await table.wait(ANN, ids[0], 30)
            left = [await table.wait(ANN, each, 30) for each in ids[1:]]
            assert [len(each.body) for each in left if isinstance(each, Result)] == [100] * 2

    run(test)


def test_what_is_not_in_memory_any_more_is_read_from_the_disk(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path, recent_bytes=1) as table:
            ids = []
            for number in range(3):
                future = start(table, counting(json_result({"n": number}), []), key=(str(number),))
                await future.done.wait()
                ids.append(future.id)

            assert [said(await table.wait(ANN, each, 30))["n"] for each in ids] == [0, 1, 2]

    run(test)


def test_completions_come_in_the_order_of_their_ends_from_a_cursor_on(tmp_path: Path) -> None:
    async def test() -> None:
        gates = [asyncio.Event() for _ in range(3)]

        def gated(gate: asyncio.Event) -> Work:
            async def work(_: Progress) -> Result:
                await gate.wait()
                return json_result({})

            return work

        with futures(tmp_path) as table:
            started = [
                start(table, gated(gate), key=(str(i),), group=SAMPLES) for i, gate in enumerate(gates)
            ]
            nothing, cursor = await table.completions(SAMPLES, 0, 0)
            gates[2].set()
            first, cursor = await table.completions(SAMPLES, cursor, 5)
            gates[0].set()
            gates[1].set()
            await started[1].done.wait()
            rest, last = await table.completions(SAMPLES, cursor, 5)

            assert nothing == []
            assert [each.future for each in first] == [started[2].id]
            assert [each.future for each in rest] == [started[0].id, started[1].id]
            assert await table.completions(SAMPLES, last, 0) == ([], last)

    run(test)


async def ended(table: Futures, name: str, group: tuple[str, ...]) -> str:
    future = start(table, key=(name,), group=group)
    await future.done.wait()
    return future.id


def test_completions_are_told_for_as_long_as_their_results_are_kept(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as table:
            ids = [await ended(table, str(number), SAMPLES) for number in range(20)]
            await table.drop(ANN, ids[:18])
            left, _ = await table.completions(SAMPLES, 0, 0)
            await table.drop(BEN, ids)
            still, _ = await table.completions(SAMPLES, 0, 0)
            await table.drop(ANN, ids)
            nothing, _ = await table.completions(SAMPLES, 0, 0.001)

            assert [each.future for each in left] == [each.future for each in still] == ids[18:]
            assert nothing == []
            assert len(table._completions) == 0

    run(test)


def test_a_cursor_of_an_earlier_process_passes_over_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as earlier:
            for number in range(3):
                await ended(earlier, str(number), SAMPLES)
            _, cursor = await earlier.completions(SAMPLES, 0, 0)
            unread = await ended(earlier, "3", SAMPLES)

        with futures(tmp_path) as later:
            future = await ended(later, "4", SAMPLES)

            told, _ = await later.completions(SAMPLES, cursor, 0)
            assert [each.future for each in told] == [unread, future]

    run(test)


def test_a_cursor_is_good_after_a_restart_when_its_results_were_let_go_of(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as earlier:
            ids = [await ended(earlier, str(number), SAMPLES) for number in range(3)]
            _, cursor = await earlier.completions(SAMPLES, 0, 0)
            await earlier.drop(ANN, ids)

        with futures(tmp_path) as later:
            future = await ended(later, "3", SAMPLES)

            told, _ = await later.completions(SAMPLES, cursor, 0)
            assert [each.future for each in told] == [future]

    run(test)


def test_a_result_is_there_after_a_restart_and_its_key_is_still_used(tmp_path: Path) -> None:
    async def test() -> None:
        runs: list[int] = []
        with futures(tmp_path) as before:
            first = start(before, counting(Result(b"\x00\x01", "application/x-protobuf", form="pass"), runs))
            expected = await before.wait(ANN, first.id, 30)

        with futures(tmp_path) as table:
            again = start(table, counting(json_result({}), runs))

            assert again.id == first.id
            assert await table.wait(ANN, again.id, 30) == expected
            with pytest.raises(RequestConflict):
                start(table, digest=b"other")
            assert len(runs) == 1
            assert table.unfinished() == []

    run(test)


def test_what_had_not_ended_waits_to_be_started_again_in_the_order_in_which_it_came(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as before:
            open_ = [start(before, endless, key=(str(i),), session="s") for i in range(3)]
            done = start(before, key=("done",))
            for each in (*open_, done):
                await before.durable(each)
            await before.wait(ANN, done.id, 30)

        with futures(tmp_path) as table:
            assert [each.id for each in table.unfinished()] == [each.id for each in open_]
            asked = table.asked(open_[1].id)
            assert (asked.body, asked.key, asked.route) == (b"body of 1", ("1",), "/there")
            assert isinstance(waiting := await table.wait(ANN, open_[1].id, 0.01), Progress)
            assert "started again" in waiting.reason
            assert table.running_again

            for each in open_:
                assert start(table, counting(json_result({"n": 1}), []), key=each.key).id == each.id
            assert [said(await table.wait(ANN, each.id, 30)) for each in open_] == [{"n": 1}] * 3
            assert not table.running_again

    run(test)


def test_ids_that_work_gives_out_are_the_same_when_it_runs_again(tmp_path: Path) -> None:
    async def test() -> None:
        given: list[tuple[object, ...]] = []
        kept = asyncio.Event()

        async def work(progress: Progress) -> Result:
            origin = progress.origin
            given.append((origin.request("create"), origin.number("seed", 2**31), progress.decided))
            if not progress.decided:
                await progress.keep(b"found")
            kept.set()
            return await endless(progress)

        for _ in range(2):
            with futures(tmp_path) as table:
                kept.clear()
                future = start(table, work)
                await table.durable(future)
                await kept.wait()

        assert given[0][:2] == given[1][:2]
        assert [each[2] for each in given] == [b"", b"found"]
        with futures(tmp_path) as table:
            other = start(table, endless, key=("another",)).progress.origin
            assert other.request("create") != given[0][0]

    run(test)


def test_when_the_daemon_is_gone_nothing_ends_and_the_process_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            raise DaemonGone("gone")

        with futures(tmp_path) as table:
            future = start(table, work)
            await table.durable(future)
            await asyncio.wait_for(table.gone.wait(), 30)
            assert isinstance(await table.wait(ANN, future.id, 0.01), Progress)

        with futures(tmp_path) as table:
            assert [each.id for each in table.unfinished()] == [future.id]

    run(test)


def test_what_cannot_be_started_again_ends_and_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        with futures(tmp_path) as before:
            future = start(before, endless)
            await before.durable(future)

        with futures(tmp_path) as table:
            table.fail(future.id, InvalidData("no longer"))

            assert said(await table.wait(ANN, future.id, 30))["error"] == "no longer"

    run(test)


def test_an_ended_future_takes_no_more_memory_than_it_is_counted_as(tmp_path: Path) -> None:
    many = 500

    async def test() -> None:
        with futures(tmp_path, recent_bytes=10**9) as table:

            async def ended(number: int) -> None:
                asked = Asked(ANN, "/optim_step", b"")
                future = table.start(asked, ("op", str(number)), b"d", counting(json_result({}), []))
                await table.wait(ANN, future.id, 60)

            await ended(0)
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                for number in range(1, many + 1):
                    await ended(number)
                after, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            # Collected or not: what ended is in no cycle that keeps its work.
            assert (after - before) / many < ENTRY_BYTES

    run(test)
