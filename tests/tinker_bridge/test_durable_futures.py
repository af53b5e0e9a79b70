"""Every future whose id was told leads to exactly one outcome, whatever is killed meanwhile.

What each kill may hit is brought about, not waited for: an operation whose predecessor has not come is
acknowledged and has not run; a result that was told was written down before.
"""

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.kills import kill_all, replace, start_again
from loractl.tests.tinker_bridge.raw import Raw
from loractl.tests.tinker_bridge.sdk import RATE, adapter, logprobs, same, text, tinker
from loractl.tests.tinker_bridge.served import MODEL, Served, serving

DATA = [text(9, 1)]
STEPS = 4
# Less than a publish that missed its receipt, or a lane that misses a number, would take.
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def killed() -> Iterator[Served]:
    """A service of its own, which takes up what is killed at once and again and again."""
    restarts = ["daemon.restart_first_s=0.05", "daemon.restart_max_s=0.1", "daemon.restart_limit=100"]
    with serving("sampler.engine=torch", "journal.snapshot_s=1", *restarts) as running:
        yield running


@pytest.fixture
def client_environment(killed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK in this process finds the tokenizer."""
    for name, value in killed.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def user(killed: Served) -> Iterator[Raw]:
    with Raw(killed) as requests:
        yield requests


def test_what_was_acknowledged_and_had_not_run_runs_once(killed, user):
    model = user.model()
    second = user.start("/forward_backward", wire.forward_backward(model, 2))
    third = user.start("/optim_step", wire.optim_step(model, 3))

    replace(killed)

    soon = {"x-stainless-read-timeout": "1"}
    waiting = user.http.post("/retrieve_future", json={"request_id": third}, headers=soon).json()
    assert waiting["type"] == "try_again"
    assert user.start("/forward_backward", wire.forward_backward(model, 2)) == second
    user.do("/forward_backward", wire.forward_backward(model, 1))
    assert user.result(second)["metrics"]["weights:sum"] == 4
    assert user.result(third)["metrics"]["tokens"] == 8


def test_what_was_sent_just_before_has_one_outcome(killed, user):
    """The bridge dies somewhere on the way of each."""
    model, calm = user.model(), user.model()
    posts = [
        ("/forward_backward", lambda run: wire.forward_backward(run, 1)),
        ("/optim_step", lambda run: wire.optim_step(run, 2)),
        ("/save_weights", lambda run: {"model_id": run, "seq_id": 3, "path": "kept"}),
        ("/save_weights_for_sampler", lambda run: {"model_id": run, "seq_id": 4, "path": "kept"}),
        (
            "/save_weights_for_sampler",
            lambda run: {"model_id": run, "seq_id": 5, "sampling_session_seq_id": 0},
        ),
        ("/save_weights", lambda run: {"model_id": run, "seq_id": 6, "path": "kept"}),
        ("/forward_backward", lambda run: wire.forward_backward(run, 7)),
    ]
    started = [user.start(path, body(model)) for path, body in posts]

    replace(killed)

    began = time.monotonic()
    assert [user.start(path, body(model)) for path, body in posts] == started
    outcomes = [user.result(each) for each in started]
    assert time.monotonic() - began < PATIENCE_S
    expected = [user.do(path, body(calm)) for path, body in posts]
    assert [sorted(each) for each in outcomes] == [sorted(each) for each in expected]
    assert outcomes[0]["loss_fn_outputs"] == expected[0]["loss_fn_outputs"]
    assert "exists already" in outcomes[5]["error"]
    listed = user.http.get(f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert sorted(each["checkpoint_id"] for each in listed) == ["sampler_weights/kept", "weights/kept"]
    assert user.do("/optim_step", wire.optim_step(model, 8))["metrics"]["tokens"] == 4


def test_a_result_that_was_told_is_told_again(killed, user):
    model = user.model()
    started = user.start("/forward_backward", wire.forward_backward(model, 1))
    failing = user.start("/forward_backward", wire.forward_backward(model, 2, wire.datum([5, 9999])))
    sampler = user.sampler()
    sampling = user.start("/asample", wire.sample(sampler, 0, count=2, max_tokens=8))
    told = [user.result(each) for each in (started, failing, sampling)]

    replace(killed)

    assert [user.result(each) for each in (started, failing, sampling)] == told
    assert told[1]["category"] == "user"
    target = {"target": {"sampling_session_id": sampler, "cloned_sampler_id": 0}}
    (completion,) = user.ok("/retrieve_futures", target)["completions"]
    assert completion["request_id"] == sampling


def test_a_used_number_stays_used(killed, user):
    session = user.session()
    made = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
    first = user.start("/create_model", made)
    model = user.result(first)["model_id"]
    user.do("/forward_backward", wire.forward_backward(model, 1))

    replace(killed)

    assert user.start("/create_model", made) == first
    others = [
        user.post("/create_model", {**made, "lora_config": {"rank": 8}}),
        user.post("/optim_step", wire.optim_step(model, 1)),
        user.post(
            "/copy_weights",
            {"source_path": user.do("/save_weights", {"model_id": model, "seq_id": 2})["path"]}
            | {"session_id": session, "model_seq_id": 0},
        ),
    ]
    assert [each.status_code for each in others] == [422] * 3


def test_operations_without_numbers_keep_their_order(killed, user):
    root = str(user.http.base_url).removesuffix("/api/v1/")
    model = user.http.post(f"{root}/add_lora", json={"rank": 4, "seed": 1}).json()["model_id"]
    rows = {"model_id": model, "data": [wire.datum()]}

    def begin(path: str, body: dict[str, Any]) -> str:
        answer = user.http.post(f"{root}{path}", json=body)
        assert answer.is_success, answer.text
        request_id: str = answer.json()["request_id"]
        return request_id

    started = [begin("/fwdbwd", rows), begin("/optim_step", {"model_id": model}), begin("/fwdbwd", rows)]

    replace(killed)

    results = [user.result(each) for each in started]
    assert [each["type"] for each in results] == ["fwdbwd", "optim_step", "fwdbwd"]
    assert results[1]["metrics"]["tokens"] == 4
    assert user.result(begin("/optim_step", {"model_id": model}))["metrics"]["tokens"] == 4
    user.http.post(f"{root}/remove_lora", json={"model_id": model})


def test_a_change_that_was_made_is_told_so_when_it_is_asked_for_again(killed, user):
    model = user.model()
    user.do("/save_weights", {"model_id": model, "seq_id": 1, "path": "old"})
    path = f"/training_runs/{model}/checkpoints/weights/old"
    key = {"x-idempotency-key": secrets.token_hex(8)}
    assert user.http.delete(path, headers=key).status_code == 200

    replace(killed)

    assert user.http.delete(path, headers=key).status_code == 200
    assert user.http.delete(path, headers={"x-idempotency-key": secrets.token_hex(8)}).status_code == 404


class Trained:
    """A client that trains, two steps in flight, until it is told that all is over; then a little longer."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.losses: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[Any] = []
        left = STEPS
        while left or waiting:
            if left:
                waiting.append(self.client.forward_backward(DATA, "cross_entropy"))
                self.client.optim_step(RATE)
                left -= self._over.is_set()
            if len(waiting) > 1 or not left:
                self.losses.append(waiting.pop(0).result().metrics["loss:sum"])

    def ended(self) -> bool:
        self._over.set()
        self._thread.join(PATIENCE_S)
        return not self._thread.is_alive()


def undisturbed(service: Any, trained: Trained) -> bool:
    """Whether another adapter comes to the same, step by step."""
    calm = adapter(service)
    expected = []
    for _ in trained.losses:
        running = calm.forward_backward(DATA, "cross_entropy")
        calm.optim_step(RATE)
        expected.append(running.result().metrics["loss:sum"])
    return trained.losses == expected and same(logprobs(trained.client, DATA), logprobs(calm, DATA))


def test_the_sdk_trains_on_while_bridges_die(killed, client_environment):
    with tinker.ServiceClient(base_url=killed.url, api_key=killed.key) as service:
        training = Trained(adapter(service))

        for _ in range(2):
            replace(killed)

        assert training.ended()
        assert undisturbed(service, training)


def test_the_sdk_trains_on_while_everything_is_killed_and_started_again(killed, client_environment):
    with (
        tinker.ServiceClient(base_url=killed.url, api_key=killed.key) as ann,
        tinker.ServiceClient(base_url=killed.url, api_key=killed.key_for("ben")) as ben,
    ):
        services = [ann, ben]
        training = [Trained(adapter(each)) for each in services]

        replace(killed, "trainer")
        kill_all(killed)
        start_again(killed)

        assert all(each.ended() for each in training)
        assert all(undisturbed(*each) for each in zip(services, training, strict=True))
