"""Who sends too fast is told when to come again; nobody is held back for polling, or for what others do."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import pytest
from loractl.bus.ids import TenantId
from loractl.tinker_bridge.rate_limit import FREE, RateLimit
from loractl.tinker_bridge.rates import BURST_S, Bucket, Rates

ANN, BEN = TenantId("ann"), TenantId("ben")
NO_BOUND = 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Inside:
    """The application behind: it reads the whole body and says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        self.seen.append((scope["path"], size))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


Ask = Callable[..., Awaitable[httpx.Response]]


def limited(test: Callable[[Ask, Clock, Inside], Awaitable[None]], **rates: float) -> None:
    """Run a test behind limits; `ask` posts as a tenant, by its name for a key."""
    clock, inside = Clock(), Inside()
    bounds = {"requests_per_s": NO_BOUND, "bytes_per_s": NO_BOUND, **rates}

    def tenant_of(scope: Any) -> TenantId | None:
        name = dict(scope["headers"]).get(b"x-api-key", b"").decode()
        return TenantId(name) if name in (ANN, BEN) else None

    app = RateLimit(inside, rates=Rates(**bounds), tenant_of=tenant_of, clock=clock)

    async def whole() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://a") as http:

            async def ask(tenant: str, path: str = "/api/v1/asample", body: bytes = b"") -> httpx.Response:
                return await http.post(path, content=body, headers={"X-API-Key": tenant})

            await test(ask, clock, inside)

    asyncio.run(whole())


def test_beyond_the_rate_a_request_is_told_when_to_come_again():
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        first = [(await ask(ANN)).status_code for _ in range(22)]
        refused = await ask(ANN)
        clock.now += float(refused.headers["retry-after"])
        later = await ask(ANN)

        # Ten seconds' worth at once, and one more that goes into debt.
        assert first == [200] * 21 + [429]
        assert refused.status_code == 429
        assert refused.json()["code"] == "quota_exceeded"
        assert "quotas.requests_per_s" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) == 1
        assert later.status_code == 200
        assert len(inside.seen) == 22

    limited(test, requests_per_s=2.0)


def test_one_tenants_haste_is_nobody_elses():
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        while (await ask(ANN)).status_code == 200:
            pass

        assert (await ask(BEN)).status_code == 200

    limited(test, requests_per_s=1.0)


@pytest.mark.parametrize("path", sorted(FREE))
def test_polls_and_heartbeats_never_count(path: str):
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        polls = {(await ask(ANN, path)).status_code for _ in range(100)}
        while (await ask(ANN)).status_code == 200:
            pass
        in_debt = await ask(ANN, path)

        assert polls == {200}
        assert in_debt.status_code == 200

    limited(test, requests_per_s=1.0)


def test_bytes_are_counted_as_they_come_and_a_large_body_passes_once():
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        large = await ask(ANN, body=b"x" * 5000)
        refused = await ask(ANN, body=b"x")
        clock.now += float(refused.headers["retry-after"])
        later = await ask(ANN, body=b"x")

        assert (large.status_code, refused.status_code, later.status_code) == (200, 429, 200)
        assert "quotas.request_bytes_per_s" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) == 40
        assert inside.seen == [("/api/v1/asample", 5000), ("/api/v1/asample", 1)]

    limited(test, bytes_per_s=100.0)


def test_a_wait_is_never_longer_than_the_sdk_obeys():
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        await ask(ANN, body=b"x" * 100_000)

        assert (await ask(ANN)).headers["retry-after"] == "60"

    limited(test, bytes_per_s=10.0)


def test_requests_of_nobody_pass_on_to_be_refused_by_the_keys():
    async def test(ask: Ask, clock: Clock, inside: Inside) -> None:
        assert {(await ask("unknown")).status_code for _ in range(50)} == {200}

    limited(test, requests_per_s=1.0)


def test_a_rate_below_one_lets_requests_through_in_its_time():
    bucket = Bucket(0.5, at=0.0)
    passed = []
    for now in range(60):
        if not bucket.wait_s(float(now)):
            bucket.take(1, float(now))
            passed.append(now)

    assert 0.5 * BURST_S <= len(passed) <= 0.5 * 60 + 0.5 * BURST_S + 1


def test_tenants_that_are_quiet_are_forgotten():
    rates = Rates(requests_per_s=1.0, bytes_per_s=1.0)
    for number in range(5000):
        rates.count_request(TenantId(f"t{number}"), now=float(number))

    assert len(rates._buckets) <= 1100


def test_no_bound_is_no_bound():
    rates = Rates(requests_per_s=0.0, bytes_per_s=0.0)
    for _ in range(1000):
        rates.count_request(ANN, 0.0)
        rates.count_bytes(ANN, 10**12, 0.0)

    assert rates.wait_s(ANN, 0.0)[0] == 0


def test_the_routes_that_never_count_are_routes():
    """A poll that is renamed must not begin to count in silence."""
    from loractl.tinker_bridge.routes import ROUTERS

    known = {route.path for router in ROUTERS for route in router.routes}

    assert known >= FREE
