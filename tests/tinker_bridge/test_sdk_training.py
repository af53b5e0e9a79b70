"""TrainingClient over HTTP: what a step does and tells, saved states, and clients made from them."""

import math

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import (
    RANK,
    RATE,
    adapter,
    datum,
    logprobs,
    near,
    rewarded,
    same,
    step,
    text,
    tinker,
    tokens,
)
from loractl.tests.tinker_bridge.served import MODEL

DATA = [text(9, seed) for seed in range(3)]


def test_a_step_tells_its_gradient_norm_rate_tokens_and_number(service):
    client = adapter(service)

    client.forward_backward(DATA[:1], "cross_entropy")
    client.forward_backward(DATA[1:], "cross_entropy")
    first = client.optim_step(tinker.AdamParams(learning_rate=3e-3)).result().metrics
    client.forward_backward(DATA, "cross_entropy")
    clipped = client.optim_step(tinker.AdamParams(learning_rate=0.0, grad_clip_norm=1e-3)).result().metrics

    assert (first["optimizer_step"], clipped["optimizer_step"]) == (1, 2)
    assert (first["learning_rate"], first["tokens"]) == (3e-3, 24)
    # Of before the clipping: it says whether the clip was needed.
    assert clipped["grad_norm"] > 1
    assert math.isfinite(first["grad_norm"])


def test_a_step_without_gradients_is_harmless(service):
    client = adapter(service)
    step(client, DATA)
    before = logprobs(client, DATA)

    metrics = client.optim_step(RATE).result().metrics

    assert (metrics["applied"], metrics["tokens"]) == (0, 0)
    assert same(logprobs(client, DATA), before)


def test_a_pipeline_runs_in_the_order_in_which_it_was_sent(service):
    """Nothing is waited for until the end; a slow way step by step leads to the same bits."""
    eager, patient = adapter(service), adapter(service)

    running = [
        each
        for _ in range(4)
        for each in (eager.forward_backward(DATA, "cross_entropy"), eager.optim_step(RATE))
    ]
    losses = [each.result().metrics["loss:sum"] for each in running[::2]]
    expected = [step(patient, DATA).metrics["loss:sum"] for _ in range(4)]

    assert losses == expected
    assert losses == sorted(losses, reverse=True)


def test_adam_parameters_of_each_step_are_used(service):
    plain, decayed, other_betas = (adapter(service) for _ in range(3))
    settings = ({}, {"weight_decay": 0.5}, {"beta1": 0.0, "beta2": 0.5})

    for client, more in zip((plain, decayed, other_betas), settings, strict=True):
        for _ in range(2):
            step(client, DATA, params=tinker.AdamParams(learning_rate=1e-2, **more))

    expected = logprobs(plain, DATA)
    assert not near(logprobs(decayed, DATA), expected, 1e-4)
    assert not near(logprobs(other_betas, DATA), expected, 1e-4)


def test_a_learning_rate_of_0_changes_nothing(service):
    client = adapter(service)
    step(client, DATA)
    before = logprobs(client, DATA)

    step(client, DATA, params=tinker.AdamParams(learning_rate=0.0))

    assert same(logprobs(client, DATA), before)


def test_a_saved_state_is_a_path_that_can_be_loaded_into_the_running_client(service):
    client = adapter(service)
    step(client, DATA)
    saved = client.save_state("one", ttl_seconds=3600, user_metadata={"note": "first"}).result()
    before = logprobs(client, DATA)
    step(client, DATA)
    moved = logprobs(client, DATA)

    client.forward_backward([rewarded()], "ppo")  # dropped by the load
    client.load_state(saved.path).result()

    assert saved.path == f"tinker://{client.model_id}/weights/one"
    assert not same(moved, before)
    assert same(logprobs(client, DATA), before)
    assert client.optim_step(RATE).result().metrics["applied"] == 0


def test_names_are_used_once_unless_overwritten(service):
    client = adapter(service)
    step(client, DATA)
    first = client.save_state("twice").result()
    before = logprobs(client, DATA)
    step(client, DATA)

    with pytest.raises(tinker.RequestFailedError, match="exists") as failure:
        client.save_state("twice").result()
    kept = service.create_training_client_from_state(first.path).result()
    assert same(logprobs(kept, DATA), before)
    again = client.save_state("twice", overwrite=True).result()
    replaced = service.create_training_client_from_state(again.path).result()

    assert failure.value.category == "user"
    assert again.path == first.path
    assert same(logprobs(replaced, DATA), logprobs(client, DATA))


def test_a_sampler_checkpoint_may_have_the_name_of_a_training_checkpoint(service):
    client = adapter(service)

    trained = client.save_state("000010").result().path
    sampled = client.save_weights_for_sampler("000010", ttl_seconds=3600).result().path

    assert trained == f"tinker://{client.model_id}/weights/000010"
    assert sampled == f"tinker://{client.model_id}/sampler_weights/000010"
    with pytest.raises(tinker.RequestFailedError, match="exists"):
        client.save_weights_for_sampler("000010").result()


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("a/b", {}, "a/b"),
        ("..", {}, r"\.\."),
        ("fine", {"ttl_seconds": 60}, "ttl_seconds"),
        ("fine", {"ttl_seconds": 20 * 366 * 86400}, "ttl_seconds"),
    ],
)
def test_a_name_or_ttl_that_cannot_be_is_the_users_mistake(service, name, more, message):
    client = adapter(service)

    for save in (client.save_state, client.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match=message) as failure:
            save(name, **more).result()
        assert failure.value.category == "user"
    assert np.isfinite(logprobs(client, DATA)[0]).all()


def test_a_client_from_a_state_has_its_shape_and_weights(service):
    client = adapter(service, rank=2, train_mlp=False)
    step(client, DATA)
    path = client.save_state("shape").result().path

    made = service.create_training_client_from_state(path, user_metadata={"from": "shape"}).result()

    assert made.get_info().lora_rank == 2
    assert made.model_id != client.model_id
    assert same(logprobs(made, DATA), logprobs(client, DATA))


def test_a_client_from_a_sampler_checkpoint_has_weights_and_no_optimizer(service):
    client = adapter(service)
    step(client, DATA)
    path = client.save_weights_for_sampler("weights").result().path

    made = service.create_training_client_from_state(path).result()

    assert near(logprobs(made, DATA), logprobs(client, DATA), 1e-5)
    with pytest.raises(tinker.RequestFailedError, match="optimizer") as failure:
        service.create_training_client_from_state_with_optimizer(path).result()
    assert failure.value.category == "user"


@pytest.mark.parametrize("path", ["tinker://nobody:train:0/weights/none", "tinker://odd", "somewhere"])
def test_a_checkpoint_that_is_not_there_is_the_users_mistake(service, path):
    client = adapter(service)

    with pytest.raises(tinker.RequestFailedError, match="checkpoint") as failure:
        service.create_training_client_from_state(path).result()
    with pytest.raises(tinker.RequestFailedError, match="checkpoint"):
        client.load_state_with_optimizer(path).result()

    assert failure.value.category == "user"
    assert np.isfinite(logprobs(client, DATA)[0]).all()


def test_a_state_of_another_shape_cannot_be_loaded(service):
    small, large = adapter(service, rank=2), adapter(service, rank=RANK)
    step(small, DATA)
    path = small.save_state("small").result().path
    before = logprobs(large, DATA)

    with pytest.raises(tinker.RequestFailedError, match="rank") as failure:
        large.load_state(path).result()

    assert failure.value.category == "user"
    assert same(logprobs(large, DATA), before)


def test_a_long_sequence_is_refused_with_its_length(service):
    longest = service.get_server_capabilities().supported_models[0].max_context_length
    client = adapter(service)

    with pytest.raises(tinker.RequestFailedError, match=str(longest)) as failure:
        client.forward([datum(tokens(longest + 2))], "cross_entropy").result()

    assert failure.value.category == "user"
    assert logprobs(client, [datum(tokens(longest + 1))])[0].shape == (longest,)


def test_the_model_of_another_session_can_be_resumed_after_its_end(service):
    with tinker.ServiceClient() as other:
        client = adapter(other)
        step(client, DATA)
        path = client.save_state("kept").result().path
        expected = logprobs(client, DATA)

    resumed = service.create_training_client_from_state_with_optimizer(path, base_model=MODEL).result()

    assert same(logprobs(resumed, DATA), expected)
