"""The bridge as HTTP clients meet it, with the in-memory bus behind it: no daemon, no sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from loractl.bus.config import Config, load_config
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tinker_bridge.app import create_app
from loractl.tinker_bridge.bridge import Bridge, open_bridge

API = "/api/v1"
HOST = "http://bridge.test:8000"


class User:
    """One tenant's HTTP client."""

    def __init__(self, bridge: Bridge, name: str) -> None:
        self.name = name
        self.key = Keys(bridge.layout).create(name)
        self.http = client(bridge, self.key)

    async def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        answer = await self.http.request(method, API + path, **more)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.json()

    async def get(self, path: str, status: int = 200, /, **params: Any) -> Any:
        return await self.ask("GET", path, status, params=params)

    async def post(self, path: str, status: int = 200, /, **body: Any) -> Any:
        return await self.ask("POST", path, status, json=body)

    async def work(self, path: str, /, **body: Any) -> Any:
        """Start work and wait for its result, be it a failure."""
        started = await self.post(path, **body)
        return await self.post("/retrieve_future", request_id=started["request_id"])

    async def session(self, **more: Any) -> str:
        body = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0", **more}
        created: str = (await self.post("/create_session", **body))["session_id"]
        return created

    async def run(self, session: str | None = None, number: int = 0, **more: Any) -> str:
        """A fresh training run's id."""
        session = session or await self.session()
        body = {"base_model": "tiny", "lora_config": {"rank": 8, "seed": 1}, **more}
        made: str = (await self.work("/create_model", session_id=session, model_seq_id=number, **body))[
            "model_id"
        ]
        return made

    async def save(self, run: str, seq: int, name: str, **more: Any) -> str:
        saved: str = (await self.work("/save_weights", model_id=run, seq_id=seq, path=name, **more))["path"]
        return saved

    async def save_for_sampler(self, run: str, seq: int, name: str) -> str:
        saved = await self.work("/save_weights_for_sampler", model_id=run, seq_id=seq, path=name)
        path: str = saved["path"]
        return path


def client(bridge: Bridge, key: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=create_app(bridge)),
        base_url=HOST,
        headers={"X-API-Key": key} if key else {},
    )


def settings(state: Path, *more: str) -> Config:
    return load_config(
        state_dir=str(state), environ={}, overrides=["model.path=/models/tiny", "model.name=tiny", *more]
    )


@asynccontextmanager
async def bridge_on(state: Path, bus: InMemoryBus, *more: str) -> AsyncIterator[Bridge]:
    StateLayout(state).root.mkdir(parents=True, exist_ok=True)
    bus.layout = StateLayout(state)
    bridge = open_bridge(settings(state, *more), bus)
    try:
        yield bridge
    finally:
        bridge.close()


def with_bridge(state: Path, test: Callable[[Bridge, InMemoryBus], Awaitable[None]], *more: str) -> None:
    """Run a test on a fresh bridge, in a minute at most. more: settings."""

    async def whole() -> None:
        bus = InMemoryBus()
        async with bridge_on(state, bus, *more) as bridge:
            await test(bridge, bus)

    asyncio.run(asyncio.wait_for(whole(), 60))


def rest(path: str) -> str:
    """Where a checkpoint's tinker:// path lies in the REST API."""
    run, segment, name = path.removeprefix("tinker://").split("/")
    return f"/training_runs/{run}/checkpoints/{segment}/{name}"
