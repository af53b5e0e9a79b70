"""Two tenants and an attacker: nothing of another's can be told from what does not exist, wherever it is asked."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loractl.daemon.routing import DESTINATION_BY_KIND
from loractl.tests.tinker_bridge.bus_in_memory import InMemoryBus
from loractl.tests.tinker_bridge.in_memory import bridge_on
from loractl.tinker_bridge.app import create_app

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from attacking import bus_walk, http_walk, kinds, routes
from attacking.scene import Scene, scene


@pytest.fixture(scope="module")
def running() -> Iterator[Scene]:
    with scene() as service:
        yield service


def test_every_kind_that_the_broker_routes_is_tried():
    assert {kind.kind for kind in kinds.ATTEMPTS} == set(DESTINATION_BY_KIND)


def test_every_route_is_tried(tmp_path: Path):
    async def whole() -> set[tuple[str, str]]:
        async with bridge_on(tmp_path, InMemoryBus()) as bridge:
            return http_walk.application_routes(create_app(bridge).routes)

    known = {*routes.OPEN, *routes.LISTS, *routes.ATTEMPTS}

    assert asyncio.run(whole()) == known
    assert len(known) == len(routes.OPEN) + len(routes.LISTS) + len(routes.ATTEMPTS)


@pytest.mark.parametrize("walk", [bus_walk.walk, http_walk.walk], ids=["bus", "http"])
def test_what_belongs_to_another_is_answered_as_what_does_not_exist(running: Scene, walk):
    tried = list(walk(running))

    assert [each for each in tried if not each.same or each.leaked] == []
    assert len(tried) > 50


MARK = "Xylophagous-quokka"
MARKED_TOKENS = [913, 914, 915, 916, 917]
# What a client may send that some part of us finds wrong, with the marked text in it.
WRONG: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/api/v1/create_session", f'{{"tags": "{MARK}"}}'.encode()),
    (
        "POST",
        "/api/v1/create_session",
        f'{{"user_metadata": ["{MARK}"], "sdk_version": {{"{MARK}": 1}}}}'.encode(),
    ),
    ("POST", "/api/v1/create_session", f'{{"display_name": "{MARK}\\ud800"}}'.encode()),
    ("POST", "/api/v1/optim_step", f'{{"model_id": "{MARK}", "seq_id": "{MARK}"}}'.encode()),
    ("POST", "/api/v1/forward_backward", MARK.encode()),
    ("POST", "/api/v1/asample", f'{{"sampling_session_id": "x", "prompt": "{MARK}"}}'.encode()),
    ("POST", "/fwdbwd", f'{{"model_id": "x", "data": [{{"prompt": "{MARK}"}}], "{MARK}": 1}}'.encode()),
    ("POST", "/sample", f'{{"prompt": ["{MARK}", 1], "sampling_params": "{MARK}"}}'.encode()),
    ("POST", "/generate", f'{{"prompt": "{MARK}", "raw": "{MARK}"'.encode()),
    ("POST", "/api/v1/weights_info", f'{{"tinker_path": "tinker://{MARK}"}}'.encode()),
    ("GET", f"/api/v1/{MARK}", b""),
    ("PATCH", "/usage", MARK.encode()),
)


def test_neither_logs_nor_errors_hold_text_keys_or_traces(running: Scene):
    person = http_walk.Person(running, running.keys[http_walk.OWNER])
    answers = [_sent(person, *wrong) for wrong in WRONG]
    _work_on_marked_text(person)
    stranger = http_walk.Person(running, f"tml-{MARK}")
    answers.append(_sent(stranger, "POST", "/sample", b"{}"))

    logged = {file.name: file.read_text(errors="replace") for file in running.logs.iterdir()}
    secrets = (MARK, str(MARKED_TOKENS)[1:-1], *running.keys.values(), running.curve.secret)
    assert {"bridge.log", "daemon.log", "trainer.log", "sampler-0.log"} <= {*logged}
    assert [(name, secret) for name, text in logged.items() for secret in secrets if secret in text] == []
    assert [text for text in logged.values() if "Traceback" in text] == []
    assert [answer.status_code for answer in answers if answer.status_code >= 500] == []
    for answer in answers:
        assert {"detail", "code", "category"} == {*answer.json()}
        assert "Traceback" not in answer.text
        assert ".py" not in answer.text


def _sent(person: http_walk.Person, method: str, path: str, body: bytes) -> httpx.Response:
    return person.http.request(method, path, content=body, headers={"content-type": "application/json"})


def _work_on_marked_text(person: http_walk.Person) -> None:
    """Train on it, sample from it, name things after it, and fail with it."""
    model = person.post("/add_lora", {"name": "poet", "rank": 2})["model_id"]
    for row in ({"prompt": MARK, "completion": MARK}, {"messages": [{"role": "user", "content": MARK}]}):
        body = {"model_id": model, "data": [row]}
        started = person.http.post("/fwdbwd", json=body)
        if started.status_code == 200:
            person.result(started.json()["request_id"])
    person.http.post("/sample", json={"prompt": MARK, "sampling_params": {"max_tokens": 2, "stop": [MARK]}})
    prompt = [*MARKED_TOKENS, 10**6]
    for tokens in (MARKED_TOKENS, prompt):
        person.http.post("/sample", json={"prompt": tokens, "sampling_params": {"max_tokens": 2}})
    session = person.post("/api/v1/create_session", {"user_metadata": {"note": MARK}, "display_name": MARK})
    person.post("/api/v1/sessions/search", {"display_name": MARK})
    person.post(f"/api/v1/sessions/{session['session_id']}/finish", {"detail": MARK})
