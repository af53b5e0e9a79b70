"""Lost replies, resent requests: whatever is asked twice runs once, and is answered alike."""

import httpx
import pytest
from loractl.tests.tinker_bridge import raw as wire
from loractl.tests.tinker_bridge.dropping import dropping
from loractl.tests.tinker_bridge.raw import Fields, Raw
from loractl.tests.tinker_bridge.sdk import RATE, adapter, logprobs, same, text, tinker, tokens, types
from loractl.tests.tinker_bridge.served import MODEL

DATA = [text(9, 1), text(6, 2)]


def trained(service):
    """A step in two chunks, a sampler of what came of it, and a client resumed from the saved state."""
    client = adapter(service)
    client.holder._client_config = client.holder._client_config.model_copy(update={"fwdbwd_max_chunk_len": 1})
    client.forward_backward(DATA, "cross_entropy")
    client.optim_step(RATE)
    saved = client.save_state("state")
    sampler = client.save_weights_and_get_sampling_client()
    resumed = service.create_training_client_from_state_with_optimizer(saved.result().path).result()
    return sampler.result(), logprobs(resumed, DATA[:1])


def test_the_sdk_works_where_every_first_reply_is_lost(sdk_environment, served):
    few = types.SamplingParams(max_tokens=4, seed=3)
    ids = tinker.ModelInput.from_ints(tokens(5, 1))

    with tinker.ServiceClient() as calm:
        sampler, expected = trained(calm)
        said = sampler.sample(ids, 2, few).result()
    with dropping(served.url) as proxy, tinker.ServiceClient(base_url=proxy.url) as shaken:
        sampler, found = trained(shaken)
        said_there = sampler.sample(ids, 2, few).result()

    asked = {"create_session", "create_model", "get_info", "forward_backward", "optim_step", "save_weights"}
    assert asked | {"save_weights_for_sampler", "load_weights", "asample"} <= {*proxy.lost}
    assert proxy.lost.count("retrieve_future") >= 8
    assert same(found, expected)
    assert [each.tokens for each in said_there.sequences] == [each.tokens for each in said.sequences]


# Every operation of a run, in the order of their numbers.
OPERATIONS = [
    ("/forward_backward", lambda model, seq: wire.forward_backward(model, seq)),
    ("/optim_step", lambda model, seq: wire.optim_step(model, seq)),
    ("/save_weights", lambda model, seq: {"model_id": model, "seq_id": seq, "path": "once"}),
    ("/save_weights_for_sampler", lambda model, seq: {"model_id": model, "seq_id": seq, "path": "once"}),
    (
        "/save_weights_for_sampler",
        lambda model, seq: {"model_id": model, "seq_id": seq, "sampling_session_seq_id": 7},
    ),
    ("/forward_backward", lambda model, seq: wire.forward_backward(model, seq)),
    (
        "/load_weights",
        lambda model, seq: {
            "model_id": model,
            "seq_id": seq,
            "path": f"tinker://{model}/weights/once",
            "optimizer": True,
        },
    ),
    ("/forward_backward", lambda model, seq: wire.forward_backward(model, seq)),
    ("/optim_step", lambda model, seq: wire.optim_step(model, seq)),
]


def test_every_operation_sent_three_times_runs_once(raw):
    calm, shaken = raw.model(), raw.model()

    for seq, (path, body) in enumerate(OPERATIONS, 1):
        first = raw.do(path, body(calm, seq))
        again = [raw.start(path, body(shaken, seq)) for _ in range(2)]
        outcome = raw.result(again[0])
        again.append(raw.start(path, body(shaken, seq)))

        assert len({*again}) == 1
        assert "error" not in outcome
        assert [raw.result(each) for each in again] == [outcome] * 3
        assert outcome == _renamed(first, calm, shaken)
    assert raw.logprobs(shaken, len(OPERATIONS) + 1) == raw.logprobs(calm, len(OPERATIONS) + 1)


def _renamed(fields: Fields, before: str, after: str) -> Fields:
    """With another model's, and its session's, ids in place of those of `before`."""
    text = httpx.Response(200, json=fields).text
    renamed = text.replace(before, after).replace(before.partition(":")[0], after.partition(":")[0])
    found: Fields = httpx.Response(200, text=renamed).json()
    return found


def test_making_a_model_or_a_sampler_again_gives_the_first(raw):
    session = raw.session()
    lora = {"rank": 4, "seed": 1}
    model = {"session_id": session, "model_seq_id": 3, "base_model": MODEL, "lora_config": lora}
    sampler = {"session_id": session, "sampling_session_seq_id": 3, "base_model": MODEL}

    made = [raw.start("/create_model", model) for _ in range(3)]
    opened = [raw.ok("/create_sampling_session", sampler) for _ in range(3)]

    assert len({*made}) == 1
    assert raw.result(made[0])["model_id"] == f"{session}:train:3"
    assert opened == [opened[0]] * 3
    assert opened[0]["sampling_session_id"] == f"{session}:sample:3"


def test_a_sample_sent_again_is_the_same_sample(raw):
    """Without a seed, so that another run would say something else."""
    sampler = raw.sampler()
    body = wire.sample(sampler, 5, count=3, max_tokens=8)

    started = [raw.ok("/asample", body) for _ in range(3)]
    results = [raw.result(each["request_id"]) for each in started]

    assert started == [started[0]] * 3
    assert len({*started[0]["sample_sequence_ids"]}) == 3
    assert results == [results[0]] * 3


@pytest.mark.parametrize("ready", [True, False], ids=["done", "waiting for an earlier one"])
def test_another_body_under_a_used_number_is_refused_and_the_first_stands(raw, ready):
    model = raw.model()
    seq = 1 if ready else 2
    started = raw.start("/forward_backward", wire.forward_backward(model, seq))
    if ready:
        raw.result(started)

    others = [
        raw.post("/forward_backward", wire.forward_backward(model, seq, wire.datum(weight=3.0))),
        raw.post("/optim_step", wire.optim_step(model, seq)),
    ]

    for each in others:
        assert each.status_code == 422
        assert "used before" in each.json()["detail"]
    if not ready:
        raw.do("/forward_backward", wire.forward(model, 1))
    assert raw.result(started)["metrics"]["weights:sum"] == 4
    assert raw.do("/optim_step", wire.optim_step(model, seq + 1))["metrics"]["tokens"] == 4


def test_another_model_or_sample_under_a_used_number_is_refused(raw):
    session = raw.session()
    raw.model(session, 0)
    sampler = raw.sampler(session, 0)
    raw.start("/asample", wire.sample(sampler, 0))
    lora = {"rank": 2, "seed": 1}
    model = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": lora}

    refused = [raw.post("/create_model", model), raw.post("/asample", wire.sample(sampler, 0, [9, 9]))]

    assert [each.status_code for each in refused] == [422, 422]
    assert raw.logprobs(f"{session}:train:0", 1)
    assert raw.ok("/get_info", {"model_id": f"{session}:train:0"})["lora_rank"] == 4


def test_results_can_be_read_as_often_as_one_likes(raw):
    model = raw.model()
    started = raw.start("/forward_backward", wire.forward_backward(model, 1))

    found = [raw.result(started) for _ in range(3)]

    assert found == [found[0]] * 3


def test_a_client_that_reads_no_reply_is_served_all_the_same(raw: Raw):
    """The connection is cut with the request barely sent; what arrived whole has run."""
    model = raw.model()
    request = raw.http.build_request("POST", "/forward_backward", json=wire.forward_backward(model, 1))
    for _ in range(3):
        raw.http.send(request, stream=True).close()

    assert raw.do("/optim_step", wire.optim_step(model, 2))["metrics"]["tokens"] == 4
