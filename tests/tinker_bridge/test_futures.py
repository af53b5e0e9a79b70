"""Futures: work runs once, its result can be read again by whom it belongs to, for as long as it is kept."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from loractl.bus.errors import (
    ActorStopping,
    InvalidData,
    RequestConflict,
    ResultExpired,
    ResultNotFound,
)
from loractl.bus.ids import TenantId
from loractl.bus.messages import WaitCause
from loractl.tinker_bridge.futures import Futures, Progress, Result, json_result

ANN, BEN = TenantId("ann"), TenantId("ben")
KEY = ("seq_id", "1", "of", "model")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def futures(clock: Clock | None = None, *, kept_bytes: int = 10_000, kept_s: float = 100.0) -> Futures:
    return Futures(secret=b"s", kept_bytes=kept_bytes, kept_s=kept_s, clock=clock or Clock())


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


def counting(result: Result, runs: list[int]) -> Callable[[Progress], Awaitable[Result]]:
    async def work(_: Progress) -> Result:
        runs.append(1)
        return result

    return work


def said(result: Result | str) -> Any:
    assert isinstance(result, Result)
    return json.loads(result.body)


def test_the_same_key_and_content_run_once_and_read_one_result() -> None:
    async def test() -> None:
        table, runs = futures(), []
        work = counting(json_result({"a": 1}), runs)

        first = table.start(ANN, KEY, b"d", work, scope="s")
        again = table.start(ANN, KEY, b"d", work, scope="s")

        assert first is again
        assert [said(await table.wait(ANN, first.id, 1)) for _ in range(2)] == [{"a": 1}] * 2
        assert len(runs) == 1

    run(test)


def test_the_same_key_with_other_content_is_refused() -> None:
    async def test() -> None:
        table = futures()
        table.start(ANN, KEY, b"d", counting(json_result({}), []), scope="s")

        with pytest.raises(RequestConflict, match="used before"):
            table.start(ANN, KEY, b"other", counting(json_result({}), []), scope="s")

    run(test)


def test_keys_of_different_tenants_are_different() -> None:
    async def test() -> None:
        table = futures()

        first = table.start(ANN, KEY, b"d", counting(json_result({}), []), scope="s")
        other = table.start(BEN, KEY, b"other", counting(json_result({}), []), scope="s")

        assert first.id != other.id

    run(test)


def test_another_tenants_result_is_as_one_that_never_was() -> None:
    async def test() -> None:
        table = futures()
        future = table.start(ANN, KEY, b"d", counting(json_result({}), []), scope="s")

        for wrong in (future.id, "nothing", "", "a.b"):
            with pytest.raises(ResultNotFound):
                await table.wait(BEN, wrong, 1)

    run(test)


def test_a_failure_is_a_result_with_whose_fault_it_is() -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            raise InvalidData("too long")

        table = futures()
        future = table.start(ANN, KEY, b"d", work, scope="s")

        result = await table.wait(ANN, future.id, 1)

        assert said(result) == {"error": "too long", "category": "user"}

    run(test)


def test_a_bug_is_told_without_its_insides() -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            raise ZeroDivisionError("secret")

        table = futures()
        future = table.start(ANN, KEY, b"d", work, scope="s")

        result = said(await table.wait(ANN, future.id, 1))

        assert result["category"] == "server"
        assert "secret" not in result["error"]

    run(test)


def test_a_poll_that_comes_too_early_says_what_is_waited_for() -> None:
    class Asked:
        waits_for = "the trainer is restarting"
        cause: WaitCause = "others"

    async def test() -> None:
        async def work(progress: Progress) -> Result:
            progress.waiting = Asked()
            await asyncio.Event().wait()
            raise AssertionError

        table = futures()
        future = table.start(ANN, KEY, b"d", work, scope="s")

        assert await table.wait(ANN, future.id, 0.01) == future.progress
        assert future.progress.reason == "the trainer is restarting"
        assert len(table) == 1
        table.close()

    run(test)


def test_the_end_of_a_scope_ends_its_work_and_no_other() -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            await asyncio.Event().wait()
            raise AssertionError

        table = futures()
        first = table.start(ANN, KEY, b"d", work, scope="s1")
        other = table.start(ANN, ("other",), b"d", work, scope="s2")
        await asyncio.sleep(0)

        table.cancel_scope("s1")

        assert said(await table.wait(ANN, first.id, 1))["error"] == "the request was cancelled"
        assert other.result is None
        table.close()

    run(test)


def test_work_that_is_cancelled_before_it_began_has_an_end() -> None:
    async def test() -> None:
        table = futures()
        future = table.start(ANN, KEY, b"d", counting(json_result({}), runs := []), scope="s")

        table.cancel_scope("s")

        assert said(await table.wait(ANN, future.id, 1))["error"] == "the request was cancelled"
        assert runs == []

    run(test)


def test_whoever_waits_when_the_server_stops_is_told_to_ask_again() -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            await asyncio.Event().wait()
            raise AssertionError

        table = futures()
        future = table.start(ANN, KEY, b"d", work)
        waiting = asyncio.create_task(table.wait(ANN, future.id, 5))
        await asyncio.sleep(0)

        table.close()

        with pytest.raises(ActorStopping):
            await waiting

    run(test)


def test_old_results_expire_and_their_readers_are_told_so() -> None:
    async def test() -> None:
        clock = Clock()
        table = futures(clock, kept_s=100.0)
        future = table.start(ANN, KEY, b"d", counting(json_result({}), []), scope="s")
        await table.wait(ANN, future.id, 1)

        clock.now = 101.0
        table.forget_old()

        with pytest.raises(ResultExpired):
            await table.wait(ANN, future.id, 1)
        with pytest.raises(ResultNotFound):
            await table.wait(BEN, future.id, 1)

    run(test)


def test_results_are_bounded_in_bytes_the_oldest_go() -> None:
    async def test() -> None:
        table = futures(kept_bytes=2 * 1900)
        ids = []
        for number in range(3):
            work = counting(Result(b"x" * 100), [])
            future = table.start(ANN, (str(number),), b"d", work, scope="s")
            await future.done.wait()
            ids.append(future.id)

        with pytest.raises(ResultExpired):
            await table.wait(ANN, ids[0], 1)
        assert [len(r.body) for i in ids[1:] if isinstance(r := await table.wait(ANN, i, 1), Result)] == [
            100
        ] * 2

    run(test)


def test_completions_come_in_the_order_of_their_ends_from_a_cursor_on() -> None:
    async def test() -> None:
        table, group = futures(), ("samples", "a", "0")
        gates = [asyncio.Event() for _ in range(3)]

        def gated(gate: asyncio.Event) -> Callable[[Progress], Awaitable[Result]]:
            async def work(_: Progress) -> Result:
                await gate.wait()
                return json_result({})

            return work

        started = [
            table.start(ANN, (str(i),), b"d", gated(gate), scope="s", group=group)
            for i, gate in enumerate(gates)
        ]
        nothing, cursor = await table.completions(group, 0, 0)
        gates[2].set()
        first, cursor = await table.completions(group, cursor, 5)
        gates[0].set()
        gates[1].set()
        await started[1].done.wait()
        rest, last = await table.completions(group, cursor, 5)

        assert nothing == []
        assert [each.future for each in first] == [started[2].id]
        assert [each.future for each in rest] == [started[0].id, started[1].id]
        assert await table.completions(group, last, 0) == ([], last)

    run(test)


async def ended(table: Futures, name: str, group: tuple[str, ...]) -> str:
    future = table.start(ANN, (name,), b"d", counting(json_result({}), []), group=group)
    await future.done.wait()
    return future.id


def test_completions_take_memory_for_as_long_as_their_results_are_kept() -> None:
    async def test() -> None:
        table, group = futures(kept_bytes=5_000), ("samples", "a", "0")

        ids = [await ended(table, str(number), group) for number in range(20)]
        left, _ = await table.completions(group, 0, 0)
        table.drop(ANN, ids)
        await table.completions(("samples", "another", "7"), 0, 0.001)

        assert [each.future for each in left] == ids[-len(left) :]
        assert len(left) == 2
        assert len(table._completions) == 0

    run(test)


def test_a_cursor_of_an_earlier_process_passes_over_nothing() -> None:
    async def test() -> None:
        earlier, group = futures(), ("samples", "a", "0")
        for number in range(3):
            await ended(earlier, str(number), group)
        _, cursor = await earlier.completions(group, 0, 0)

        later = futures()
        future = await ended(later, "3", group)

        assert [each.future for each in (await later.completions(group, cursor, 0))[0]] == [future]

    run(test)


def test_when_the_service_stops_training_hears_it_and_samples_ask_again() -> None:
    async def test() -> None:
        async def work(_: Progress) -> Result:
            await asyncio.Event().wait()
            raise AssertionError

        table = futures()
        trained = table.start(ANN, ("model",), b"d", work, scope="s")
        sampled = table.start(ANN, ("sample",), b"d", work, scope="s", group=("samples", "a", "0"))
        polls = [asyncio.create_task(table.wait(ANN, each.id, 5)) for each in (trained, sampled)]
        await asyncio.sleep(0)

        table.close(ActorStopping("the service is stopping"))

        assert said(await polls[0]) == {"error": "the service is stopping", "category": "server"}
        with pytest.raises(ActorStopping):
            await polls[1]

    run(test)
