"""The bridge dies in the middle of everything, and its successor goes on where clients left off.

Sessions, models, checkpoints and samplers are on disk, and so are requests that have not ended and results;
models and their ordered lanes are the trainer's. What was sent can be sent again.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.kills import pid_of, replace
from loractl.tests.tinker_bridge.raw import Raw
from loractl.tests.tinker_bridge.sdk import adapter, logprobs, prompt, same, step, text, tokens, types

DATA = [text(9, 1)]


@pytest.fixture
def user(served) -> Iterator[Raw]:
    """With connections of its own: those of others are cut, too."""
    with Raw(served) as requests:
        yield requests


def test_everything_is_still_there_and_training_goes_on(served, user):
    session = user.session()
    model, calm = user.model(session, 0), user.model(session, 1)
    for each in (model, calm):
        user.do("/forward_backward", wire.forward_backward(each, 1))
    state = user.do("/save_weights", {"model_id": model, "seq_id": 2, "path": "state"})["path"]
    named = user.do("/save_weights_for_sampler", {"model_id": model, "seq_id": 3, "path": "named"})["path"]
    unnamed = user.do(
        "/save_weights_for_sampler", {"model_id": model, "seq_id": 4, "sampling_session_seq_id": 0}
    )["sampling_session_id"]
    sampler = user.sampler(session, 1, model_path=named)
    sampled = user.do("/asample", wire.sample(sampler, 0, seed=1))
    unread = user.start("/forward_backward", wire.forward(model, 5))

    replace(served)

    assert user.ok("/session_heartbeat", {"session_id": session})
    assert user.ok("/get_info", {"model_id": model})["lora_rank"] == 4
    listed = user.http.get(f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert {each["tinker_path"] for each in listed} == {state, named}
    assert user.do("/asample", wire.sample(sampler, 1, seed=1)) == sampled
    assert user.do("/asample", wire.sample(unnamed, 0, seed=1)) == sampled
    assert user.result(unread)["metrics"]["weights:sum"] == 4
    # The gradient of number 1 is still there.
    assert user.do("/optim_step", wire.optim_step(model, 6))["metrics"]["tokens"] == 4
    user.do("/optim_step", wire.optim_step(calm, 2))
    assert user.logprobs(model, 7) == user.logprobs(calm, 3)


def test_what_was_sent_before_can_be_sent_again_and_runs_once(served, user):
    """A client whose reply was lost with the bridge asks again: the trainer knows what it has done."""
    model = user.model()
    posts = [
        ("/forward_backward", wire.forward_backward(model, 1)),
        ("/optim_step", wire.optim_step(model, 2)),
        ("/forward_backward", wire.forward(model, 3)),
        ("/optim_step", {"model_id": model, "seq_id": 4, "adam_params": {"beta1": 7.0}}),
    ]
    outcomes = [user.do(*each) for each in posts]

    replace(served)

    assert [user.do(*each) for each in posts] == outcomes
    assert user.do("/optim_step", wire.optim_step(model, 5))["metrics"]["tokens"] == 0


def test_the_sdk_does_not_notice(served, service):
    client, calm = adapter(service), adapter(service)
    sampler = client.save_weights_and_get_sampling_client().result()
    few = types.SamplingParams(max_tokens=4, seed=2)
    ids = prompt(*tokens(5, 1))
    for each in (client, calm):
        step(each, DATA)
    said = sampler.sample(ids, 2, few).result().sequences

    replace(served)

    for each in (client, calm):
        step(each, DATA)
    assert same(logprobs(client, DATA), logprobs(calm, DATA))
    assert [each.tokens for each in sampler.sample(ids, 2, few).result().sequences] == [
        each.tokens for each in said
    ]
    assert client.save_state("after").result().path == f"tinker://{client.model_id}/weights/after"


def test_work_that_is_sent_while_the_bridge_is_away_waits_for_it(served, service):
    """The SDK sends until it is answered; operations keep their order."""
    client, calm = adapter(service), adapter(service)
    expected = [step(calm, DATA).metrics["loss:sum"] for _ in range(2)]

    os.kill(pid_of(served, "bridge"), signal.SIGKILL)
    running = []
    for _ in range(2):
        running.append(client.forward_backward(DATA, "cross_entropy"))
        client.optim_step(types.AdamParams(learning_rate=1e-2))

    assert [each.result().metrics["loss:sum"] for each in running] == expected
    assert same(logprobs(client, DATA), logprobs(calm, DATA))
