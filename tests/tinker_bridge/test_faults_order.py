"""Operations in any order of arrival, and wrong ones among them: numbers decide, and each is used up."""

import random
import time
from typing import Any

import pytest
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.raw import Fields

LESSONS = [wire.datum(ids) for ids in ([5, 6, 7, 8, 9], [9, 8, 7], [40, 50, 60, 70])]


def pipeline(model: str) -> list[tuple[str, Fields]]:
    """Three chunks, a step, a pass that reads, another chunk and step: numbers 1 to 7."""
    return [
        *[
            ("/forward_backward", wire.forward_backward(model, 1 + index, LESSONS[index]))
            for index in range(3)
        ],
        ("/optim_step", wire.optim_step(model, 4)),
        ("/forward_backward", wire.forward(model, 5, *LESSONS)),
        ("/forward_backward", wire.forward_backward(model, 6, LESSONS[1])),
        ("/optim_step", wire.optim_step(model, 7)),
    ]


def outcomes(raw, order: list[int]) -> list[Fields]:
    """Post the pipeline in this order; what its operations came to in the order of their numbers."""
    model = raw.model()
    posts = pipeline(model)
    started = {number: raw.start(*posts[number - 1]) for number in order}
    return [raw.result(started[number]) for number in sorted(order)]


@pytest.fixture(scope="module")
def in_order(raw) -> list[Fields]:
    return outcomes(raw, [1, 2, 3, 4, 5, 6, 7])


# The first two were seen of the SDK: a call's first chunk comes last.
ORDERS = [[2, 3, 1, 4, 5, 6, 7], [3, 2, 1, 5, 4, 7, 6], [7, 6, 5, 4, 3, 2, 1]]
ORDERS += [random.Random(seed).sample(range(1, 8), 7) for seed in range(5)]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
def test_any_order_of_arrival_comes_to_the_same(raw, in_order, order):
    assert outcomes(raw, order) == in_order


def test_posts_are_answered_at_once_and_polls_say_what_is_missing(raw):
    model = raw.model()
    posts = pipeline(model)

    began = time.monotonic()
    started = [raw.start(*post) for post in posts[1:]]
    assert time.monotonic() - began < 30  # and not as long as what is missing may take
    waiting = raw.http.post(
        "/retrieve_future", json={"request_id": started[2]}, headers={"x-stainless-read-timeout": "6"}
    ).json()

    assert (waiting["type"], waiting["queue_state"]) == ("try_again", "paused_capacity")
    assert "1" in waiting["queue_state_reason"]
    raw.start(*posts[0])
    assert raw.result(started[2])["metrics"]["tokens"] == sum(
        len(each["loss_fn_inputs"]["weights"]["data"]) for each in LESSONS
    )


def wrong(model: str, seq: int) -> dict[str, tuple[str, Fields]]:
    """Operations with a readable number that cannot be done, and a word of the reason."""

    def changed(**inputs: Any) -> Fields:
        datum = wire.datum()
        return {**datum, "loss_fn_inputs": {**datum["loss_fn_inputs"], **inputs}}

    def passed(*data: Fields, **more: Any) -> tuple[str, Fields]:
        return "/forward_backward", wire.forward_backward(model, seq, *data, **more)

    numbered = {"model_id": model, "seq_id": seq}
    rewarded = {"logprobs": wire.floats([-7.0] * 4), "advantages": wire.floats([1.0, 1e39, 0, 0])}
    image = {"chunks": [{"type": "image", "data": "AAAA", "format": "png"}]}
    return {
        "image": passed({**wire.datum(), "model_input": image}),
        "there is no loss": passed(loss="telepathy"),
        "forward_backward_custom": passed(loss="custom"),
        "vocabulary": passed(wire.datum([5, 6, 70_000])),
        "must be finite": passed(changed(**rewarded), loss="ppo"),
        "which importance_sampling needs": passed(loss="importance_sampling"),
        "weights has the shape": passed(changed(weights=wire.floats([1.0]))),
        "target_tokens has the shape": passed(changed(target_tokens=wire.ints([1]))),
        "no target_tokens": passed({**wire.datum(), "loss_fn_inputs": {}}),
        "has no tokens": passed({**wire.datum(), "model_input": {"chunks": []}}),
        "there is no data": (
            "/forward_backward",
            {**numbered, "forward_backward_input": {"data": [], "loss_fn": "cross_entropy"}},
        ),
        "needs forward_backward_input": ("/forward_backward", numbered),
        "no setting 'beta'": (
            "/forward_backward",
            {
                **numbered,
                "forward_backward_input": {
                    "data": [wire.datum()],
                    "loss_fn": "cross_entropy",
                    "loss_fn_config": {"beta": 1.0},
                },
            },
        ),
        "dimuon": ("/optim_step", {**numbered, "optimizer_params": {"type": "dimuon", "learning_rate": 1}}),
        "learning_rate": ("/optim_step", {**numbered, "adam_params": {"learning_rate": "fast"}}),
        "beta1": ("/optim_step", {**numbered, "adam_params": {"beta1": 1.5}}),
        "path": ("/load_weights", {**numbered, "optimizer": True}),
        "ttl_seconds": ("/save_weights", {**numbered, "path": "short", "ttl_seconds": 1}),
        "name a checkpoint": ("/save_weights_for_sampler", {**numbered, "path": "../../etc"}),
        "sampling session": ("/save_weights_for_sampler", numbered),
        "age": (
            "/save_weights_external",
            {**numbered, "path": "x", "age_encryption_recipients": ["nobody"]},
        ),
    }


@pytest.mark.parametrize("reason", wrong("", 0))
def test_a_wrong_operation_uses_up_its_number_and_tells_why(raw, reason):
    """In the middle of a pipeline, and before the operations that it stands behind have come."""
    model = raw.model()
    failing = raw.start(*wrong(model, 2)[reason])
    stepped = raw.start("/optim_step", wire.optim_step(model, 3))

    raw.start("/forward_backward", wire.forward_backward(model, 1))

    failed = raw.result(failing)
    assert failed["category"] == "user"
    assert reason in failed["error"]
    assert raw.result(stepped)["metrics"]["tokens"] == 4


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/optim_step", {}, 400),
        ("/optim_step", {"model_id": 5, "seq_id": 1}, 400),
        ("/optim_step", {"model_id": "nobody:train:0", "seq_id": 1}, 404),
        ("/optim_step", {"model_id": "nobody:train:0", "seq_id": "one"}, 400),
        ("/forward_backward", {"seq_id": 1}, 400),
        ("/forward_backward", {"model_id": "nobody:train:0", "seq_id": 1}, 404),
        ("/create_model", {}, 422),
        ("/create_model", {"session_id": "nobody", "model_seq_id": 0, "base_model": "x"}, 404),
        ("/load_weights", {"path": "tinker://a/weights/b", "optimizer": False}, 400),
        ("/retrieve_future", {"request_id": "nothing"}, 404),
        ("/retrieve_future", {}, 400),
        ("/asample", {}, 400),
        ("/asample", {"sampling_session_id": "nobody", "seq_id": 0}, 404),
        ("/session_heartbeat", {"session_id": "nobody"}, 404),
        ("/get_info", {"model_id": "nobody"}, 404),
        ("/create_sampling_session", {"session_id": "nobody", "sampling_session_seq_id": 0}, 404),
    ],
)
def test_what_cannot_even_be_placed_is_refused_at_once_with_a_body(raw, path, body, status):
    answer = raw.post(path, body)

    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize("seq", [0, -1, 2**63, 10**30])
def test_a_number_that_is_none_is_refused_at_once(raw, seq):
    model = raw.model()

    for path, body in (
        ("/optim_step", wire.optim_step(model, seq)),
        ("/forward_backward", wire.forward_backward(model, seq)),
    ):
        assert raw.post(path, body).status_code == 400

    assert raw.logprobs(model, 1)


def test_a_number_too_far_ahead_fails_without_holding_anything(raw):
    model = raw.model()

    failed = raw.do("/optim_step", wire.optim_step(model, 1_000_000))

    assert (failed["category"], "1000000" in failed["error"]) == ("user", True)
    assert raw.logprobs(model, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a":' * 2000])
@pytest.mark.parametrize("path", ["/optim_step", "/forward_backward", "/asample", "/create_model"])
def test_bytes_that_are_no_request_are_refused_with_a_body(raw, path, content):
    kinds = ["application/json"]
    if path == "/forward_backward":
        kinds.append("application/x-protobuf")

    for kind in kinds:
        answer = raw.http.post(path, content=content, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500
        assert answer.json()["detail"]
