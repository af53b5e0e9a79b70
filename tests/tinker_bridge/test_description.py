"""The API's description of itself, which /docs shows."""

from pathlib import Path

from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import client, with_bridge
from loractl.tinker_bridge.bridge import Bridge

# A signed address is its own permission; whether the service is well is no secret.
OPEN = {"/healthz", "/api/v1/healthz", "/api/v1/exports/{signed}/{name}"}


def test_the_key_is_described_so_that_the_pages_ask_for_it(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        described = (await client(bridge).get("/openapi.json")).json()

        schemes = described["components"]["securitySchemes"]
        [name] = [name for name, each in schemes.items() if each["name"] == "X-API-Key"]
        unkeyed = {
            path
            for path, operations in described["paths"].items()
            for operation in operations.values()
            if operation.get("security") != [{name: []}]
        }
        assert unkeyed == OPEN

    with_bridge(tmp_path, test)
