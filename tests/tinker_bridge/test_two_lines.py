"""A selector as every other one, and what is put off behind what is not."""

import asyncio
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from loractl.tinker_bridge import two_lines
from loractl.tinker_bridge.two_lines import TwoLines

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_AT_ONCE = 2

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Of each the first end is looked at, and what the second end says is there to be read."""
    with ExitStack() as stack:
        found = [socket.socketpair() for _ in range(20)]
        for each in (end for pair in found for end in pair):
            stack.enter_context(each)
        yield found


@pytest.fixture
def lines() -> Iterator[TwoLines]:
    with TwoLines() as made:
        yield made


@pytest.fixture(params=["one line", "two lines, in front", "two lines, behind"])
def selector(request: pytest.FixtureRequest, pairs: list[Pair]) -> Iterator[selectors.BaseSelector]:
    """What the standard library has for it, and ours."""
    if request.param == "one line":
        with selectors.EpollSelector() as standard:
            yield standard
        return
    with TwoLines() as ours:
        if request.param.endswith("behind"):
            for end, _ in pairs:
                ours.put_off(end.fileno())
        yield ours


def ready(selector: selectors.BaseSelector, timeout_s: float | None = 0) -> list[tuple[object, int, object]]:
    return [(key.fileobj, events, key.data) for key, events in selector.select(timeout_s)]


def test_what_is_ready_is_told_with_its_data_until_it_is_read(selector, pairs):
    (end, other), (quiet, _), *_ = pairs
    selector.register(end, READ, "data")
    selector.register(quiet.fileno(), READ)
    assert ready(selector) == []

    other.send(b"x")

    assert ready(selector, None) == ready(selector, 5.0) == [(end, READ, "data")]
    end.recv(1)
    assert ready(selector) == []
    assert ready(selector, 0.001) == ready(selector, -1.0) == []


def test_what_is_asked_for_can_change(selector, pairs):
    (end, other), *_ = pairs
    selector.register(end, WRITE, 1)
    other.send(b"x")
    assert ready(selector) == [(end, WRITE, 1)]

    assert selector.modify(end, READ | WRITE, 2) == selector.get_key(end)

    assert ready(selector) == [(end, READ | WRITE, 2)]
    selector.modify(end, READ | WRITE, 3)
    assert ready(selector) == [(end, READ | WRITE, 3)]


def test_a_hang_up_is_told_to_who_reads_and_to_who_writes(selector, pairs):
    (end, other), *_ = pairs
    selector.register(end, READ | WRITE)

    other.close()

    assert ready(selector) == [(end, READ | WRITE, None)]


def test_what_left_is_told_no_more_and_may_come_again(selector, pairs):
    (end, other), *_ = pairs
    selector.register(end, READ, 1)
    other.send(b"x")

    assert selector.unregister(end).data == 1

    assert ready(selector) == []
    for gone in (selector.unregister, selector.get_key):
        with pytest.raises(KeyError):
            gone(end)
    with pytest.raises(KeyError):
        selector.modify(end, READ)
    selector.register(end, READ, 2)
    assert ready(selector) == [(end, READ, 2)]


def test_what_was_closed_can_still_leave(selector, pairs):
    (end, _), *_ = pairs
    number = end.fileno()
    selector.register(number, READ, 1)
    end.close()

    assert selector.unregister(number).data == 1

    assert ready(selector) == []


def test_nothing_is_registered_twice_and_what_is_can_be_listed(selector, pairs):
    (end, _), (another, _), *_ = pairs
    keys = [selector.register(each, READ) for each in (end, another)]

    with pytest.raises(KeyError):
        selector.register(end, WRITE)

    assert list(selector.get_map().values()) == keys


def test_what_is_put_off_comes_a_few_at_a_time_behind_all_that_is_not(lines, pairs):
    for end, other in pairs:
        lines.register(end, READ)
        other.send(b"x")
    for end, _ in pairs[2:]:
        lines.put_off(end.fileno())

    told = [end for end, _, _ in ready(lines)]

    assert set(told[:2]) == {end for end, _ in pairs[:2]}
    assert len(told) == 2 + _AT_ONCE


def test_those_behind_have_a_share_of_each_round_however_many_are_in_front(lines, pairs, monkeypatch):
    monkeypatch.setattr(two_lines, "_FIRST", 4)
    for end, other in pairs:
        lines.register(end, READ)
        other.send(b"x")
    for end, _ in pairs[10:]:
        lines.put_off(end.fileno())

    behind = {end for end, _ in pairs[10:]}
    told = [[end in behind for end, _, _ in ready(lines)] for _ in range(10)]

    assert {sum(each) for each in told} == {_AT_ONCE}
    assert {len(each) - sum(each) for each in told} <= {3, 4}


def test_what_cannot_be_looked_at_is_not_registered(selector, tmp_path):
    with (tmp_path / "a file").open("w") as file:
        with pytest.raises(PermissionError):
            selector.register(file, READ)

        assert list(selector.get_map()) == []


def test_the_line_behind_goes_round(lines, pairs):
    """Who has much to say is told of again when all others were."""
    for end, other in pairs:
        lines.put_off(end.fileno())
        lines.register(end, READ)
        other.send(b"x")

    told = [end for _ in range(4 * len(pairs) // _AT_ONCE) for end, _, _ in ready(lines)]

    for end, _ in pairs:
        places = [place for place, each in enumerate(told) if each is end]
        assert {after - before for before, after in pairwise(places)} == {len(pairs)}


def test_who_passes_stands_in_front_again(lines, pairs):
    for end, other in pairs:
        lines.put_off(end.fileno())
        lines.register(end, READ | WRITE)
        other.send(b"x")

    last, _ = pairs[-1]
    lines.let_pass(last.fileno())
    lines.let_pass(last.fileno())

    assert ready(lines)[0] == (last, READ | WRITE, None)
    lines.put_off(last.fileno())
    lines.put_off(last.fileno())
    assert len(ready(lines)) == _AT_ONCE


def test_a_loop_with_two_lines_runs_what_any_loop_does():
    async def talk() -> list[bytes]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(300_000))
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()

            async def ask(number: int) -> bytes:
                reader, writer = await asyncio.open_connection(*address)
                lines.put_off(writer.get_extra_info("socket").fileno())
                writer.write(bytes([number]) * 300_000)
                answer = await reader.read()
                writer.close()
                return answer

            return await asyncio.gather(*(ask(number) for number in range(50)))

    lines = TwoLines()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(lines)) as runner:
        answers = runner.run(asyncio.wait_for(talk(), 60))

    assert answers == [bytes([number]) * 300_000 for number in range(50)]
