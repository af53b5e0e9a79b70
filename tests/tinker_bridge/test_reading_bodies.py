"""What is done before and while a body is read: the key first, patience with limits, a bound on all together."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from loractl.bus.errors import QuotaExceeded
from loractl.bus.ids import TenantId
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tinker_bridge.app import create_app
from loractl.tinker_bridge.body_budget import BodyBudget
from loractl.tinker_bridge.body_limit import Allowed, BodyLimit
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.pace import Pace
from loractl.tinker_bridge.routes.reading import asked_of
from loractl.tinker_bridge.training import digest_of
from starlette.requests import Request

ANN, BEN = TenantId("ann"), TenantId("ben")


class Client:
    """One ASGI request. parts: of its body; without an end, its client stops there."""

    def __init__(self, path: str, *parts: bytes, key: str = "", method: str = "POST") -> None:
        self.told: list[Any] = []
        self.read = 0
        self._parts = [*parts]
        headers = [(b"x-api-key", key.encode())] if key else []
        self.scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}

    async def receive(self) -> dict[str, Any]:
        self.read += 1
        if not self._parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": self._parts.pop(0), "more_body": True}

    async def send(self, message: Any) -> None:
        self.told.append(message)


@pytest.mark.parametrize(
    ("path", "method", "key"),
    [
        ("/api/v1/forward_backward", "POST", ""),
        ("/api/v1/forward_backward", "POST", "tml-unknown"),
        ("/api/v1/healthz", "POST", ""),
        ("/api/v1/sessions", "GET", ""),
        ("/nothing", "POST", ""),
    ],
)
def test_without_a_known_key_no_byte_of_a_body_is_read(
    tmp_path: Path, path: str, method: str, key: str
) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        client = Client(path, bytes(100), method=method, key=key)

        await create_app(bridge)(client.scope, client.receive, client.send)

        assert client.told[0]["status"] == 401
        assert b"access_denied" in client.told[1]["body"]
        assert client.read == 0

    with_bridge(tmp_path, test)


def test_a_known_key_comes_in(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        await User(bridge, "ann").session()

    with_bridge(tmp_path, test)


def test_a_client_that_stops_in_the_middle_is_not_waited_for() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    async def test() -> None:
        client = Client("/x", b"half")
        limit = BodyLimit(never, allowed=lambda _: Allowed(ANN, 2**20), pace=Pace(), patience_s=0.02)

        await limit(client.scope, client.receive, client.send)

        assert client.told[0]["status"] == 408
        assert (b"connection", b"close") in client.told[0]["headers"]

    run(test)


def test_a_tenants_bodies_wait_for_room_and_one_goes_on() -> None:
    async def test() -> None:
        budget = BodyBudget(most_bytes=1000, share_bytes=100)
        first, second, third = (budget.open(ANN) for _ in range(3))
        await budget.take(first, 60)
        await budget.take(second, 40)

        waiting = [asyncio.ensure_future(budget.take(each, 50)) for each in (third, second)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        await budget.take(first, 200)  # the oldest, or nobody would ever end
        await budget.take(budget.open(BEN), 100)  # others have their own share
        first.whole = True
        budget.close(first)

        await asyncio.gather(*waiting)

    run(test)


def test_the_oldest_waits_too_while_whole_ones_are_being_answered() -> None:
    async def test() -> None:
        budget = BodyBudget(most_bytes=1000, share_bytes=100)
        whole, next_ = budget.open(ANN), budget.open(ANN)
        await budget.take(whole, 100)
        whole.whole = True

        waiting = asyncio.ensure_future(budget.take(next_, 10))
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.close(whole)
        await waiting

    run(test)


def test_beyond_what_all_may_have_together_one_is_told_to_come_again() -> None:
    async def test() -> None:
        budget = BodyBudget(most_bytes=150, share_bytes=100)
        ann, ben = budget.open(ANN), budget.open(BEN)
        await budget.take(ann, 100)

        with pytest.raises(QuotaExceeded):
            await budget.take(ben, 60)
        budget.close(ann)
        await budget.take(ben, 60)

    run(test)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_large_body_is_not_put_together_again_for_its_route() -> None:
    async def test() -> None:
        body = bytes(2**20)
        client = Client("/api/v1/forward_backward", key="tml-any")

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        asked = await asked_of(Request(client.scope, receive), ANN)

        assert asked.body is body

    asyncio.run(test())


def test_a_digest_of_parts_is_that_of_the_whole() -> None:
    """As files have it that were written when the whole was made."""
    whole = hashlib.blake2b(b"/api/v1/forwarddatums", digest_size=16).digest()

    assert digest_of(b"/api/v1/forward", b"datums") == digest_of(b"/api/v1/forwarddatums") == whole
