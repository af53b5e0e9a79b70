"""What leads nowhere is refused like everything else: with a text, a code and a category."""

from pathlib import Path

import pytest
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tinker_bridge.bridge import Bridge


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/of/the/kind", 404, "no_such_route"),
        ("POST", "/training_runs", 405, "method_not_allowed"),
    ],
)
def test_it_is_refused_with_a_code(tmp_path: Path, method: str, path: str, status: int, code: str) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        body = await User(bridge, "ann").ask(method, path, status)

        assert (body["code"], body["category"]) == (code, "user")
        assert path in body["detail"]

    with_bridge(tmp_path, test)
