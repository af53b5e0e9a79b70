"""Keys and tenants: what another's key finds is nothing, whatever it names."""

import httpx
import pytest
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.raw import Raw
from loractl.tests.tinker_bridge.served import MODEL


@pytest.fixture(scope="module")
def stranger(served):
    with Raw(served, served.key_for("stranger")) as requests:
        yield requests


@pytest.fixture(scope="module")
def owned(raw):
    """One of everything that the local user can own."""
    session = raw.session()
    model = raw.model(session, 0)
    future = raw.start("/forward_backward", wire.forward_backward(model, 1))
    raw.result(future)
    save = {"model_id": model, "seq_id": 2, "path": "mine"}
    state = raw.do("/save_weights", save)["path"]
    weights = raw.do("/save_weights_for_sampler", {**save, "seq_id": 3})["path"]
    return {
        "session": session,
        "model": model,
        "future": future,
        "state": state,
        "weights": weights,
        "sampler": raw.sampler(session, 0),
        "run": f"/training_runs/{model}",
    }


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("/session_heartbeat", lambda it: {"session_id": it["session"]}),
        ("/get_info", lambda it: {"model_id": it["model"]}),
        ("/forward_backward", lambda it: wire.forward_backward(it["model"], 1)),
        ("/forward_backward", lambda it: wire.forward_backward(it["model"], 9)),
        ("/optim_step", lambda it: wire.optim_step(it["model"], 9)),
        ("/save_weights", lambda it: {"model_id": it["model"], "seq_id": 9, "path": "theirs"}),
        ("/save_weights_for_sampler", lambda it: {"model_id": it["model"], "seq_id": 9, "path": "theirs"}),
        ("/save_weights_external", lambda it: {"model_id": it["model"], "seq_id": 9, "path": "theirs"}),
        (
            "/load_weights",
            lambda it: {"model_id": it["model"], "seq_id": 9, "path": it["state"], "optimizer": True},
        ),
        ("/create_model", lambda it: {"session_id": it["session"], "model_seq_id": 5, "base_model": MODEL}),
        (
            "/create_sampling_session",
            lambda it: {"session_id": it["session"], "sampling_session_seq_id": 5, "base_model": MODEL},
        ),
        ("/asample", lambda it: wire.sample(it["sampler"], 0)),
        ("/join_sampling_session", lambda it: {"sampling_session_id": it["sampler"]}),
        ("/retrieve_future", lambda it: {"request_id": it["future"]}),
        ("/cancel_future", lambda it: {"request_id": it["future"]}),
        (
            "/retrieve_futures",
            lambda it: {"target": {"sampling_session_id": it["sampler"]}, "timeout": 0},
        ),
        ("/weights_info", lambda it: {"tinker_path": it["state"]}),
        ("/sessions/{session}/finish", lambda it: {"reason": {"type": "success"}}),
    ],
)
def test_the_objects_of_another_do_not_exist(owned, raw, stranger, path, made):
    answer = stranger.post(path.format(**owned), made(owned))
    missing = {name: value.replace(owned["session"], "0" * 36) for name, value in owned.items()}
    missing["future"] = "0" * 49
    of_nobody = stranger.post(path.format(**missing), made(missing))

    assert answer.status_code == of_nobody.status_code == 404
    # Not even the words tell that there is something.
    assert answer.text.replace(owned["session"], "") == of_nobody.text.replace("0" * 36, "")
    assert raw.ok("/get_info", {"model_id": owned["model"]})["model_id"] == owned["model"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/sessions/{session}", None),
        ("GET", "/samplers/{sampler}", None),
        ("GET", "{run}", None),
        ("GET", "{run}/checkpoints", None),
        ("DELETE", "{run}/checkpoints/weights/mine", None),
        ("DELETE", "{run}/checkpoints/sampler_weights/mine", None),
        ("POST", "{run}/checkpoints/weights/mine/publish", None),
        ("DELETE", "{run}/checkpoints/weights/mine/publish", None),
        ("PUT", "{run}/checkpoints/weights/mine/ttl", {"ttl_seconds": 3600}),
        ("PUT", "/sessions/{session}/project", {"project_id": "theirs"}),
    ],
)
def test_the_records_of_another_do_not_exist(owned, stranger, method, path, body):
    answer = stranger.http.request(method, path.format(**owned), json=body)

    assert answer.status_code == 404
    assert answer.json()["detail"]


@pytest.mark.parametrize("kind", ["state", "weights"])
def test_the_checkpoints_of_another_cannot_be_loaded_or_sampled(owned, stranger, kind):
    session = stranger.session()
    load = {"session_id": session, "model_seq_id": 8, "path": owned[kind], "optimizer": False}
    sample = {"session_id": session, "sampling_session_seq_id": 8, "model_path": owned[kind]}

    loaded = stranger.do("/load_weights", load)
    sampled = stranger.post("/create_sampling_session", sample)

    assert (loaded["category"], "there is no checkpoint" in loaded["error"]) == ("user", True)
    assert sampled.status_code == 404


def test_lists_hold_ones_own_alone(owned, raw, stranger):
    stranger.model()

    for path, name in (("/training_runs", "training_run_id"), ("/checkpoints", "checkpoint_id")):
        theirs = stranger.http.get(path).text
        assert owned["session"] not in theirs
        assert owned["session"] in raw.http.get(path).text
        assert name in raw.http.get(path).text
    assert owned["session"] not in stranger.http.get("/sessions").text


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": "tml-unknown"}])
@pytest.mark.parametrize("path", ["/create_session", "/asample", "/forward_backward", "/client/config"])
def test_without_a_known_key_everything_is_401_with_a_body(served, headers, path):
    answer = httpx.post(f"{served.url}/api/v1{path}", json={}, headers=headers)

    assert answer.status_code == 401
    assert "key" in answer.json()["detail"]


def test_health_needs_no_key(served):
    assert httpx.get(f"{served.url}/api/v1/healthz").json() == {"status": "ok"}
