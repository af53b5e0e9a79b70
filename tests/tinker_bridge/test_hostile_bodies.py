"""Bodies that are small and make much work, or much memory, of what they hold."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import User, with_bridge
from loractl.tinker_bridge.bodies import (
    CreateSessionBody,
    RetrieveManyBody,
    SaveExternalBody,
    SaveWeightsBody,
    SearchBody,
)
from loractl.tinker_bridge.body_fields import Body
from loractl.tinker_bridge.bridge import Bridge
from loractl.tinker_bridge.founding.bodies import AddLoraBody, RowsBody, SampleBody
from loractl.tinker_bridge.last_resort import LastResort
from pydantic import ValidationError

MANY = 50_000
NUMBERS = {str(number): number for number in range(MANY)}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CreateSessionBody, {"tags": [1] * MANY}),
        (CreateSessionBody, {"tags": [""] * MANY}),
        (RetrieveManyBody, {"target": {"sampling_session_id": "s"}, "retrieved_request_ids": [{}] * MANY}),
        (SearchBody, {"project_ids": [1] * MANY}),
        (SearchBody, {"statuses": [1] * MANY}),
        (SearchBody, {"user_metadata": NUMBERS}),
        (SaveExternalBody, {"model_id": "m", "path": "p", "age_encryption_recipients": [1] * MANY}),
        (SaveWeightsBody, {"model_id": "m", "user_metadata": NUMBERS}),
        (RowsBody, {"model_id": "m", "data": [1], "loss_fn_config": dict.fromkeys(NUMBERS, "x")}),
        (AddLoraBody, NUMBERS),
        (SampleBody, {"prompts": [{}] * MANY}),
        (SampleBody, {"prompts": [[{}] * 10] * MANY}),
        (SampleBody, {"prompt": ["x"] * MANY}),
        (SampleBody, {"prompt": [{"role": 1, "content": 2, "more": 3}] * MANY}),
        (SampleBody, {"prompt": "x", "sampling_params": {"stop": [{}] * MANY}}),
    ],
)
def test_what_is_wrong_many_times_is_said_a_few_times(kind: type[Body], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(fields)

    assert refused.value.error_count() < 10


def test_more_prompts_than_may_be_sampled_are_refused_by_their_number(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        user = User(bridge, "ann")

        refused = await user.http.post("/sample", json={"prompts": [{}] * 4097})

        assert refused.status_code == 400
        assert "4097 samples at once" in refused.json()["detail"]

    with_bridge(tmp_path, test)


def test_a_number_that_no_table_holds_is_the_callers_mistake(tmp_path: Path) -> None:
    async def test(bridge: Bridge, _: InMemoryBus) -> None:
        user = User(bridge, "ann")
        session = await user.session()
        opened = await user.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
        )
        target = {"sampling_session_id": opened["sampling_session_id"]}

        refused = await user.post("/retrieve_futures", 422, target=target, prev_cursor=2**63, timeout=0)
        taken = await user.post("/retrieve_futures", target=target, prev_cursor=2**63 - 1, timeout=0)

        assert refused["detail"].startswith("prev_cursor: ")
        assert taken["completions"] == []

    with_bridge(tmp_path, test)


def test_a_bug_is_answered_in_json_under_an_id_that_the_log_has() -> None:
    async def buggy(*_: object) -> None:
        raise ZeroDivisionError("of somebody's text")

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(LastResort(buggy))) as http:
            return await http.get("http://bridge.test/x")

    with structlog.testing.capture_logs() as logged:
        answer = asyncio.run(asked())

    body = answer.json()
    assert (answer.status_code, body["code"], body["category"]) == (500, "internal", "server")
    assert "somebody" not in answer.text
    assert logged[0]["bug"] in body["detail"]
