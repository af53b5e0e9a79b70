"""ServiceClient over HTTP: capabilities, training clients of every shape, and how a session ends."""

import asyncio

import numpy as np
import pytest
from loractl.tests.tinker_bridge.sdk import RANK, adapter, logprobs, same, step, text, tinker, tokens
from loractl.tests.tinker_bridge.served import MODEL

DATA = [text(9, seed) for seed in range(2)]


def test_the_service_says_which_model_it_serves(service):
    sync = service.get_server_capabilities()
    awaited = asyncio.run(service.get_server_capabilities_async())

    (model,) = sync.supported_models
    assert (model.model_name, model.trainable, model.sampleable) == (MODEL, True, True)
    assert model.max_context_length > 0
    assert awaited == sync


def test_a_training_client_knows_its_model_and_tokenizer(service):
    client = adapter(service, rank=8)

    info = client.get_info()
    tokenizer = client.get_tokenizer()

    assert (info.model_id, info.model_data.model_name) == (client.model_id, MODEL)
    assert (info.is_lora, info.lora_rank) == (True, 8)
    assert asyncio.run(client.get_info_async()) == info
    assert tokenizer.decode(tokenizer.encode("Hello there")) == "Hello there"


def test_the_same_seed_makes_the_same_adapter_and_another_seed_another(service):
    first, second, other = (adapter(service, seed=seed) for seed in (5, 5, 6))
    unseeded = [adapter(service, seed=None) for _ in range(2)]

    for client in (first, second, other, *unseeded):
        step(client, DATA)

    assert same(logprobs(first, DATA), logprobs(second, DATA))
    assert not same(logprobs(first, DATA), logprobs(other, DATA))
    assert not same(logprobs(unseeded[0], DATA), logprobs(unseeded[1], DATA))


def test_only_the_asked_parts_are_trained(service):
    """At the first step each part's gradient is what it is alone, so their squares add up."""
    parts = ("train_attn", "train_mlp", "train_unembed")

    squares = {part: _norm(service, **{**dict.fromkeys(parts, False), part: True}) ** 2 for part in parts}

    assert min(squares.values()) > 0
    assert _norm(service) ** 2 == pytest.approx(sum(squares.values()), rel=1e-5)


def _norm(service, **flags):
    client = adapter(service, **flags)
    client.forward_backward(DATA, "cross_entropy")
    return client.optim_step(tinker.AdamParams()).result().metrics["grad_norm"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 10_000}, "rank"),
        ({"optimizer": tinker.DimuonOptimizerConfig()}, "dimuon"),
    ],
)
def test_an_adapter_that_cannot_be_made_says_why(service, settings, message):
    with pytest.raises(tinker.RequestFailedError, match=message) as failure:
        adapter(service, **settings)

    assert failure.value.category == "user"


def test_another_base_model_is_refused_by_name(service):
    with pytest.raises(tinker.RequestFailedError, match="meta-llama/Llama-3"):
        service.create_lora_training_client("meta-llama/Llama-3.2-1B").result()


def test_clients_of_one_session_are_numbered(service):
    one, two = adapter(service), adapter(service)

    session, kind, number = one.model_id.split(":")
    assert kind == "train"
    assert two.model_id == f"{session}:train:{int(number) + 1}"


def test_the_async_ways_lead_to_the_same(service):
    async def walk():
        client = await service.create_lora_training_client_async(MODEL, rank=RANK, seed=1)
        running = await client.forward_backward_async(DATA, "cross_entropy")
        stepped = await client.optim_step_async(tinker.AdamParams(learning_rate=1e-2))
        await running
        await stepped
        saved = await (await client.save_state_async("here"))
        named = await (await client.save_weights_for_sampler_async("there"))
        resumed = await service.create_training_client_from_state_async(saved.path)
        whole = await service.create_training_client_from_state_with_optimizer_async(saved.path)
        await (await client.load_state_async(saved.path))
        await (await client.load_state_with_optimizer_async(saved.path))
        sampled = await client.create_sampling_client_async(named.path)
        snapshot = await client.save_weights_and_get_sampling_client_async()
        of_base = await service.create_sampling_client_async(base_model=MODEL)
        forward = await (await client.forward_async(DATA, "cross_entropy"))
        scores = [
            await each.compute_logprobs_async(tinker.ModelInput.from_ints(tokens(6)))
            for each in (sampled, snapshot, of_base)
        ]
        return client, resumed, whole, forward, scores

    client, resumed, whole, forward, scores = asyncio.run(walk())

    expected = logprobs(client, DATA)
    assert same(logprobs(resumed, DATA), expected)
    assert same(logprobs(whole, DATA), expected)
    assert same([each["logprobs"].to_numpy() for each in forward.loss_fn_outputs], expected)
    assert scores[0] == scores[1] != scores[2]


def test_leaving_the_context_ends_the_session(sdk_environment):
    with tinker.ServiceClient() as service:
        client = adapter(service)
        before = logprobs(client, DATA)

    with pytest.raises(RuntimeError, match="closed"):
        adapter(service)
    assert all(np.isfinite(each).all() for each in before)


def test_closing_twice_keeps_the_first_word(sdk_environment):
    service = tinker.ServiceClient(display_name="short", user_metadata={"purpose": "test"})
    adapter(service)

    service.close("errored", "out of luck").result()

    service.close("success").result()
