"""Bodies with strings that no text can hold: refused, and the refusal can be written down."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from loractl.bus.errors import InvalidRequest
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import API, User, with_bridge
from loractl.tinker_bridge.answers import error_body
from loractl.tinker_bridge.app import create_app
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.routes.reading import json_object, path_of


@pytest.mark.parametrize("body", [rb'{"a": "x\ud800"}', rb'{"\uDfff": 1}', b'{"a": "\xed\xa0\x80"}'])
def test_half_a_surrogate_pair_is_refused_at_the_door(body):
    with pytest.raises(InvalidRequest, match="not Unicode text"):
        json_object(body)


@pytest.mark.parametrize("body", [rb'{"a": "\ud83d\ude00"}', '{"a": "\N{HANGUL SYLLABLE HAN}"}'.encode()])
def test_whole_pairs_and_other_text_are_taken(body):
    assert json_object(body)["a"] in ("\N{GRINNING FACE}", "\N{HANGUL SYLLABLE HAN}")


def test_an_error_that_quotes_such_a_string_can_be_sent():
    detail = error_body(InvalidRequest("there is no a\ud800"))["detail"]

    assert detail.encode() == rb"there is no a\ud800"


def test_a_query_that_is_no_text_keeps_nobody_from_the_path():
    request = Request({"type": "http", "path": "/api/v1/optim_step", "query_string": b"\xff", "headers": []})

    assert path_of(request) == "/api/v1/optim_step"


def test_results_that_nobody_was_given_are_let_go_of_without_a_word(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        sampler = await user.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
        )
        target = {"sampling_session_id": sampler["sampling_session_id"]}
        body = {"target": target, "timeout": 0.0, "retrieved_request_ids": ["x", "\ud800"]}

        kind = {"content-type": "application/json"}
        answer = await user.http.post(f"{API}/retrieve_futures", content=json.dumps(body), headers=kind)

        assert answer.status_code == 400
        assert "not Unicode text" in answer.text
        assert await user.post("/retrieve_futures", **{**body, "retrieved_request_ids": ["x"]})

    with_bridge(tmp_path, test)


def test_an_address_that_is_no_text_is_refused(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _bus: InMemoryBus) -> None:
        told: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            told.append(message)

        # With a slash too many, so that the framework puts the right address together.
        scope = {"type": "http", "method": "GET", "path": "/healthz/", "query_string": b"\xff", "headers": []}
        await create_app(bridge)(scope, receive, send)

        assert told[0]["status"] == 400

    with_bridge(tmp_path, test)
