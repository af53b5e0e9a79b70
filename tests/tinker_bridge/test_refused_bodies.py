"""Bodies that are no JSON object: what is wrong with them is said in words that help."""

from pathlib import Path

import pytest
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tinker_bridge.bridge import Bridge

FORM = "application/x-www-form-urlencoded"  # what curl sends where nothing is said


@pytest.mark.parametrize(
    ("kind", "body", "detail"),
    [
        (FORM, b'{"rank": 8}', f"Content-Type '{FORM}' is not known: send application/json"),
        ("application/json", b"", "the body is not a JSON object"),
        ("application/json", b"[]", "the body is not a JSON object"),
        ("application/json", b'{"rank": }', "the body is not JSON: Expecting value at character 9"),
        ("application/json; charset=utf-8", b'{"rank": "x"}', "rank: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(tmp_path: Path, kind: str, body: bytes, detail: str) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")

        answer = await user.http.post("/add_lora", content=body, headers={"content-type": kind})

        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(detail)

    with_bridge(tmp_path, test)
