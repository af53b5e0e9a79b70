"""Numbers that must hold whatever the way: the model's own, chunked or whole, alone or among others."""

import math
from dataclasses import replace

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import (
    RATE,
    adapter,
    datum,
    logprobs,
    near,
    reference,
    rewarded,
    same,
    step,
    text,
    tinker,
    tokens,
)

A = [text(9, 1), text(5, 2)]
B = [text(12, 3)]


def test_a_fresh_adapter_is_the_base_model(service, served):
    ids = [tokens(40, 1), tokens(7, 2)]

    found = logprobs(adapter(service), [datum(each) for each in ids])

    assert near(found, [reference(served.model).logprobs(each) for each in ids], 1e-4)


def test_gradients_of_two_calls_add_up(service):
    apart, together = adapter(service), adapter(service)

    apart.forward_backward(A, "cross_entropy")
    apart.forward_backward(B, "cross_entropy")
    norms = [apart.optim_step(RATE).result().metrics["grad_norm"]]
    together.forward_backward(A + B, "cross_entropy")
    norms.append(together.optim_step(RATE).result().metrics["grad_norm"])

    assert math.isclose(*norms, rel_tol=1e-6)
    assert near(logprobs(apart, A + B), logprobs(together, A + B), 1e-5)


def test_many_chunks_are_one_batch(service):
    """As many chunks as datums, all posted at once, the first of them last."""
    data = [text(4 + number % 5, number) for number in range(7)]
    whole, chunked = adapter(service), adapter(service)
    chunked.holder._client_config = chunked.holder._client_config.model_copy(
        update={"fwdbwd_max_chunk_len": 1}
    )

    try:
        outputs = [step(client, data) for client in (chunked, whole)]
    finally:
        chunked.holder._client_config = chunked.holder._client_config.model_copy(
            update={"fwdbwd_max_chunk_len": 1024}
        )

    assert len(outputs[0].loss_fn_outputs) == len(data)
    assert math.isclose(*(each.metrics["loss:sum"] for each in outputs), rel_tol=1e-6)
    assert near(logprobs(chunked, data), logprobs(whole, data), 1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"proto_compress_fwdbwd": True},
        {"parallel_fwdbwd_chunks": False, "fwdbwd_max_chunk_len": 1},
        {"sample_use_retrieve_futures": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_a_server_may_set_for_its_clients_changes_no_number(service, changed):
    """Compressed bodies, chunks one by one, completions of all samples in one poll."""
    plain, with_it = adapter(service), adapter(service)
    expected = _walk(plain)
    before = with_it.holder._client_config
    with_it.holder._client_config = before.model_copy(update=changed)

    try:
        found = _walk(with_it)
    finally:
        with_it.holder._client_config = before

    assert near(found[0], expected[0], 1e-5)
    assert found[1] == expected[1]


def _walk(client):
    """Log probabilities after a step, and what is sampled then."""
    step(client, A + B)
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=3, seed=1)
    running = [sampler.sample(tinker.ModelInput.from_ints(tokens(5, each)), 1, params) for each in range(5)]
    return logprobs(client, A), [each.result().sequences[0].tokens for each in running]


def test_a_forward_between_two_passes_has_no_effect(service):
    with_it, without = adapter(service), adapter(service)

    for client in (with_it, without):
        client.forward_backward(A, "cross_entropy")
        if client is with_it:
            client.forward([rewarded(20, 5)], "ppo")
        client.forward_backward(B, "cross_entropy")
        client.optim_step(RATE).result()

    assert same(logprobs(with_it, A), logprobs(without, A))


def test_a_run_resumed_with_its_optimizer_is_the_uninterrupted_run(service):
    straight = adapter(service)
    step(straight, A)
    step(straight, B)
    path = straight.save_state("middle").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    weights_only = service.create_training_client_from_state(path).result()
    assert same(logprobs(weights_only, A), logprobs(resumed, A))

    for client in (straight, resumed, weights_only):
        step(client, A)

    assert same(logprobs(resumed, A), logprobs(straight, A))
    assert not near(logprobs(weights_only, A), logprobs(straight, A), 1e-4)


def test_a_load_with_the_optimizer_goes_back_in_time(service):
    client = adapter(service)
    step(client, A)
    path = client.save_state("back").result().path
    step(client, B)
    expected = logprobs(client, A)

    client.load_state_with_optimizer(path).result()
    step(client, B)

    assert same(logprobs(client, A), expected)


def test_samplers_and_trainer_agree_right_after_a_publish(service):
    for settings in ({}, {"train_unembed": False}):
        client = adapter(service, **settings)
        for _ in range(3):
            step(client, A + B)
        ids = tokens(30, 7)
        sampler = client.save_weights_and_get_sampling_client().result()

        scores = sampler.compute_logprobs(tinker.ModelInput.from_ints(ids)).result()

        assert scores[0] is None
        assert near([np.array(scores[1:])], logprobs(client, [datum(ids)]), 1e-4)


def test_a_neighbour_changes_no_bit(service, served):
    """Two tenants' steps interleave on one trainer; one of them trains again alone."""
    alone, watched = adapter(service), adapter(service)
    with tinker.ServiceClient(api_key=served.key_for("neighbour")) as elsewhere:
        neighbour = adapter(elsewhere, rank=8, seed=9)
        running = []
        for _ in range(3):
            neighbour.forward_backward([rewarded(30, 8)], "importance_sampling")
            running.append(watched.forward_backward(A, "cross_entropy"))
            neighbour.optim_step(RATE)
            watched.optim_step(RATE)
            neighbour.forward_backward(B, "cross_entropy")
        losses = [each.result().metrics["loss:sum"] for each in running]
        neighbour.optim_step(RATE).result()

        expected = [step(alone, A).metrics["loss:sum"] for _ in range(3)]

        assert losses == expected
        assert same(logprobs(watched, A), logprobs(alone, A))


def test_a_nan_of_one_tenant_stays_there(service, served):
    broken = rewarded(9, 1)
    inputs = {**broken.loss_fn_inputs, "advantages": np.full(8, np.nan, dtype=np.float32)}
    client = adapter(service)
    before = logprobs(client, A)

    with tinker.ServiceClient(api_key=served.key_for("careless")) as elsewhere:
        careless = adapter(elsewhere)
        failing = careless.forward_backward([replace(broken, loss_fn_inputs=inputs)], "ppo")
        assert isinstance(failing.future().exception(), tinker.RequestFailedError)
        assert np.isfinite(step(careless, A).metrics["loss:sum"])

    assert same(logprobs(client, A), before)
