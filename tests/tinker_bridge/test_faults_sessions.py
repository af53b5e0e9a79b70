"""Sessions that end, clients that vanish, bodies that are too large: on a service that is quick to act.

It has a trainer and no sampler, so it starts within seconds.
"""

from collections.abc import Iterator

import pytest
from loractl.bus.client import Client
from loractl.bus.messages import AdapterList, ListAdapters
from loractl.tests.daemon.real_daemon import PATIENCE_S, until
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.raw import Raw
from loractl.tests.tinker_bridge.served import Served, serving

EXPIRY_S = 3.0


@pytest.fixture(scope="module")
def quick() -> Iterator[Served]:
    with serving(
        "sampler.count=0",
        "trainer.lane_gap_timeout_s=1",
        f"bridge.session_expiry_s={EXPIRY_S}",
        "bridge.body_bytes=100000",
    ) as running:
        yield running


@pytest.fixture
def user(quick) -> Iterator[Raw]:
    with Raw(quick) as requests:
        yield requests


def adapters(quick: Served) -> set[str]:
    """Models that the trainer knows of."""
    with Client(quick.config) as client:
        listed = client.request(ListAdapters(), timeout_s=PATIENCE_S)
    assert isinstance(listed, AdapterList)
    return {each.name for each in listed.adapters}


def test_finishing_a_session_frees_its_models_and_refuses_more(quick, user):
    session = user.session()
    model = user.model(session, 0)
    user.do("/forward_backward", wire.forward_backward(model, 1))
    unstarted = user.start("/optim_step", wire.optim_step(model, 3))

    user.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}, "detail": "done"})

    refused = [
        user.post("/optim_step", wire.optim_step(model, 2)),
        user.post("/session_heartbeat", {"session_id": session}),
        user.post("/create_model", {"session_id": session, "model_seq_id": 1, "base_model": "x"}),
    ]
    assert [each.status_code for each in refused] == [410, 410, 410]
    assert all("finished" in each.json()["detail"] for each in refused)
    assert user.result(unstarted)["category"] == "user"
    assert until(lambda: model not in adapters(quick))


def test_finishing_again_or_what_is_unknown(user):
    session = user.session()

    first = user.ok(f"/sessions/{session}/finish", {"reason": {"type": "errored"}})
    again = user.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}})
    unknown = user.post("/sessions/nobody/finish", {"reason": {"type": "success"}})

    assert first == again
    assert unknown.status_code == 404


def test_a_session_that_falls_silent_expires_and_keeps_its_checkpoints(quick, user):
    silent = user.session()
    kept, gone = user.model(silent, 0), user.model(silent, 1)
    user.do("/forward_backward", wire.forward_backward(kept, 1))
    user.do("/optim_step", wire.optim_step(kept, 2))
    expected = user.logprobs(kept, 3)
    path = user.do("/save_weights", {"model_id": kept, "seq_id": 4, "path": "kept"})["path"]
    alive = user.session()
    other = user.model(alive, 0)

    def expired() -> bool:
        user.ok("/session_heartbeat", {"session_id": alive})
        return gone not in adapters(quick)

    assert until(expired)

    heartbeat = user.post("/session_heartbeat", {"session_id": silent})
    assert heartbeat.status_code == 410
    assert "expired" in heartbeat.json()["detail"]
    assert user.post("/optim_step", wire.optim_step(kept, 5)).status_code == 410
    assert {kept, other} <= adapters(quick)
    load = {"session_id": alive, "model_seq_id": 1, "path": path, "optimizer": True}
    assert user.logprobs(user.do("/load_weights", load)["model_id"], 1) == expected


def test_a_gap_that_is_never_filled_fails_what_waits_and_nobody_else(user):
    """A client that vanished in the middle of a batch: its first chunk never comes."""
    session = user.session()
    broken, other = user.model(session, 0), user.model(session, 1)

    waiting = [
        user.start("/forward_backward", wire.forward_backward(broken, 2)),
        user.start("/optim_step", wire.optim_step(broken, 3)),
    ]
    assert user.do("/forward_backward", wire.forward_backward(other, 1))["metrics"]

    failed = [user.result(each) for each in waiting]
    assert all("did not arrive within 1 s" in each["error"] for each in failed)
    late = user.do("/forward_backward", wire.forward_backward(broken, 1))
    assert "error" in late
    assert user.do("/optim_step", wire.optim_step(broken, 4))["metrics"]["tokens"] == 0
    assert user.do("/optim_step", wire.optim_step(other, 2))["metrics"]["tokens"] == 4


@pytest.mark.parametrize("path", ["/forward_backward", "/optim_step", "/asample", "/create_session"])
def test_a_body_that_is_too_large_is_refused_with_a_body(user, path):
    answer = user.http.post(path, content=b" " * 200_000, headers={"content-type": "application/json"})

    assert 400 <= answer.status_code < 500
    assert "100000" in answer.json()["detail"]


def test_sampling_without_a_sampler_says_so(user):
    sampler = user.sampler()

    failed = user.do("/asample", wire.sample(sampler, 0))

    assert "sampler" in failed["error"]
