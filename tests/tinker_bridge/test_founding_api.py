"""The founding systems' own API over real HTTP: a whole life of an adapter, its aliases, its errors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from loractl.tests.tinker_bridge.served import MODEL, Served

CHAT = [{"role": "user", "content": "What is the sea?"}, {"role": "assistant", "content": "Water."}]
GREEDY = {"max_tokens": 8, "temperature": 0.0}


class Caller:
    """Asks as one tenant."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60.0)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http.post(path, json=fields)

    def ok(self, path: str, **fields: Any) -> dict[str, Any]:
        answer = self.post(path, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add(self, **fields: Any) -> str:
        return self.ok("/add_lora", **{"rank": 4, "alpha": 8, **fields})["model_id"]

    def outcome(self, started: dict[str, Any]) -> httpx.Response:
        """The first answer of /retrieve_future that is not "pending"."""
        while True:
            answer = self.post("/retrieve_future", request_id=started["request_id"], timeout=10)
            if answer.status_code != 202:
                return answer
            assert answer.json()["status"] == "pending"

    def result(self, started: dict[str, Any]) -> dict[str, Any]:
        answer = self.outcome(started)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "completed"
        return answer.json()["result"]

    def step(self, model: str, data: list[Any], learning_rate: float = 1e-2) -> float:
        passed = self.ok("/fwdbwd", model_id=model, data=data, loss_fn="cross_entropy")
        stepped = self.ok("/optim_step", model_id=model, adam_params={"learning_rate": learning_rate})
        assert (passed["model_id"], stepped["model_id"]) == (model, model)
        loss = self.result(passed)["loss"]
        assert self.result(stepped)["metrics"]["applied"] == 1.0
        return loss

    def listed(self) -> dict[str, dict[str, Any]]:
        return {each["model_id"]: each for each in self.http.get("/adapters").json()["adapters"]}


@pytest.fixture(scope="module")
def api(served: Served) -> Iterator[Caller]:
    caller = Caller(served.url, served.key_for("founding"))
    yield caller
    for model in caller.listed():
        caller.ok("/remove_lora", model_id=model)


def test_an_adapter_is_made_trained_sampled_and_removed(api):
    added = api.ok("/add_lora", base_model=MODEL, rank=4, alpha=8, name="sailor", seed=1)
    model = added["model_id"]
    assert model.startswith("sailor-")
    assert (added["rank"], added["alpha"]) == (4, 8.0)

    first = api.ok("/api/v1/sample", model_id=model, prompts=["What is the sea?"], sampling_params=GREEDY)
    losses = [api.step(model, [CHAT]) for _ in range(6)]
    then = api.ok("/sample", model_id=model, prompts=["What is the sea?"], sampling_params=GREEDY)

    assert losses[-1] < losses[0] / 2
    assert first["texts"] != then["texts"] == ["Water."]
    assert then["results"][0]["version"] > first["results"][0]["version"] >= 1
    assert api.listed()[model]["step"] == 6
    assert api.http.delete(f"/adapters/{model}").json() == {"model_id": model, "status": "removed"}
    assert model not in api.listed()
    for path in ("/remove_lora", "/sample"):
        gone = api.post(path, model_id=model, **({"prompt": "Hi"} if path == "/sample" else {}))
        assert (gone.status_code, gone.json()["code"]) == (404, "adapter_not_found")


def test_a_new_adapter_is_published_with_no_manual_step(api):
    model = api.add()

    # Each look takes a request's time, so the loop need not wait in between.
    assert any(api.listed()[model]["version"] == 1 for _ in range(1000))


def test_it_trains_as_the_same_rows_do_through_the_aliases(api):
    one, other = api.add(seed=3), api.add(seed=3)
    losses = [api.step(one, [CHAT]) for _ in range(2)]

    same = []
    for _ in range(2):
        passed = api.ok("/api/v1/forward_backward", model_id=other, data=[CHAT])
        stepped = api.ok("/api/v1/optim_step", model_id=other, adam_params={"learning_rate": 1e-2})
        same.append(api.result(passed)["loss"])
        api.result(stepped)

    assert same == losses


def test_gradients_gather_until_the_step(api):
    together, apart = api.add(seed=4), api.add(seed=4)
    other = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day."}]

    api.step(together, [CHAT, other], 1e-2)
    first = api.ok("/fwdbwd", model_id=apart, data=[CHAT])
    api.step(apart, [other], 1e-2)

    assert "loss:sum" in api.result(first)["metrics"]
    assert api.step(apart, [CHAT]) == pytest.approx(api.step(together, [CHAT]), rel=1e-4)


def test_what_was_sampled_can_be_learned_from(api):
    model = api.add()
    answer = api.ok(
        "/sample",
        model_id=model,
        prompts=["What is the sea?", CHAT[:1], [1, 5, 6]],
        sampling_params={"max_tokens": 6, "num_samples": 2, "seed": 7, "top_k": 50, "top_p": 0.95},
    )
    assert len(answer["texts"]) == 6
    assert answer["results"][0] == answer["results"][1]
    rows = [
        {
            "prompt_tokens": each["prompt_tokens"],
            "target_tokens": sample["tokens"],
            "logprobs": sample["logprobs"],
            "advantages": [1.0] * len(sample["tokens"]),
        }
        for each in answer["results"]
        for sample in each["samples"]
    ]

    settings = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    result = api.result(api.ok("/fwdbwd", model_id=model, data=rows, loss_fn="ppo", loss_fn_config=settings))

    assert result["metrics"]["tokens:sum"] == sum(len(row["target_tokens"]) for row in rows)
    assert result["metrics"]["ratio:mean"] == pytest.approx(1.0, abs=0.05)


def test_the_base_model_answers_without_an_adapter(api):
    answer = api.ok("/generate", prompt="What is the sea?", sampling_params=GREEDY)
    again = api.ok("/generate", prompts=[CHAT[:1]], base_model=MODEL, sampling_params=GREEDY)

    assert (answer["model_id"], answer["results"][0]["version"]) == (None, 0)
    assert answer["texts"] == again["texts"]


def test_two_users_of_one_adapter_take_turns(api):
    model = api.add()

    def step(_: int) -> float:
        passed = api.ok("/fwdbwd", model_id=model, data=[CHAT])
        stepped = api.ok("/optim_step", model_id=model, adam_params={"learning_rate": 1e-3})
        assert api.result(passed)["loss"] > 0
        return api.result(stepped)["metrics"]["applied"]

    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(step, range(6)))

    # A step takes the gradients of both users, which leaves the next one with none to apply.
    assert api.listed()[model]["step"] == sum(applied) >= 3


def test_work_that_fails_answers_500_with_a_body_and_can_be_read_again(api):
    model = api.add()
    started = api.ok("/optim_step", model_id=model, adam_params={"learning_rate": -1.0})

    failed, again = api.outcome(started), api.outcome(started)

    assert failed.status_code == again.status_code == 500
    assert failed.json() == again.json()
    assert (failed.json()["status"], failed.json()["category"]) == ("failed", "user")
    assert "learning_rate" in failed.json()["error"]
    assert api.step(model, [CHAT]) > 0


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/fwdbwd", {"data": []}, "data"),
        ("/fwdbwd", {"data": [5]}, "data[0]"),
        ("/fwdbwd", {"data": [CHAT], "loss_fn": "dpo"}, "there is no loss 'dpo'"),
        ("/fwdbwd", {"data": [CHAT], "loss_fn": "ppo"}, "logprobs"),
        ("/fwdbwd", {"data": [CHAT], "epochs": 3}, "epochs"),
        ("/sample", {}, "prompts"),
        ("/sample", {"prompt": ""}, "empty"),
        ("/sample", {"prompts": ["Hi"], "sampling_params": {"max_tokens": 0}}, "max_tokens"),
        ("/sample", {"prompts": ["Hi"], "sampling_params": {"penalty": 1}}, "penalty"),
        ("/sample", {"prompts": ["Hi"], "base_model": "other"}, "other"),
        ("/sample", {"prompts": [[10**6]]}, ""),
    ],
)
def test_a_request_that_is_wrong_is_refused_at_once_and_says_why(api, path, fields, said):
    model = next(iter(api.listed()), None) or api.add()

    refused = api.post(path, model_id=model, **fields)

    assert refused.status_code == 400, refused.text
    assert said in refused.json()["detail"]


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"alpha": -1}, {"rank": 10**6}, {"base_model": "x"}, {"dropout": 0}]
)
def test_an_adapter_that_cannot_be_is_refused(api, fields):
    before = set(api.listed())

    refused = api.post("/add_lora", **fields)

    assert 400 <= refused.status_code < 500
    assert refused.json()["detail"]
    assert set(api.listed()) == before


def test_adapters_are_their_owners_alone(api, served):
    other = Caller(served.url, served.key_for("other"))
    model = api.add()
    started = api.ok("/fwdbwd", model_id=model, data=[CHAT])

    assert other.listed() == {}
    for path, fields in (
        ("/fwdbwd", {"data": [CHAT]}),
        ("/optim_step", {}),
        ("/sample", {"prompt": "Hi"}),
        ("/remove_lora", {}),
    ):
        assert other.post(path, model_id=model, **fields).status_code == 404
    assert other.post("/retrieve_future", request_id=started["request_id"]).status_code == 404
    assert httpx.get(f"{served.url}/adapters").status_code == 401
    api.result(started)


def test_what_the_server_can_do_is_listed(api):
    losses = {each["name"] for each in api.http.get("/loss_functions").json()["loss_functions"]}
    (model,) = api.http.get("/get_server_capabilities").json()["supported_models"]

    assert {"cross_entropy", "importance_sampling", "ppo"} <= losses
    assert model["model_name"] == MODEL
    assert model["sampleable"]
