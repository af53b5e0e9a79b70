"""Every loss through the SDK: its sum, its gradient, and the targets and weights it takes.

The gradients of the built-in losses are held against the SDK's own path for losses of a user's making:
the same formula, written in torch at the client, must lead to the same step.

Legend: lp = log p of the target, q = that when it was sampled, A = advantage, K = targets of a position.
"""

import math

import numpy as np
import pytest
import torch
from loractl.tests.tinker_bridge.sdk import (
    RATE,
    adapter,
    datum,
    logprobs,
    logprobs_of,
    near,
    reference,
    rewarded,
    same,
    step,
    text,
    tinker,
    tokens,
    types,
)

CLIP = {"clip_low_threshold": 0.7, "clip_high_threshold": 1.4}


def _clipped(ratio):
    return ratio.clamp(*CLIP.values())


def _sequence_ratio(lp, q):
    return torch.exp((lp.detach() - q).mean() + lp - lp.detach())


def _lower(ratio, a):
    return -torch.minimum(ratio * a, _clipped(ratio) * a)


# Settings, and each position's part of the loss.
LOSSES = {
    "importance_sampling": ({}, lambda lp, q, a: -torch.exp(lp - q) * a),
    "ppo": (CLIP, lambda lp, q, a: _lower(torch.exp(lp - q), a)),
    "cispo": (CLIP, lambda lp, q, a: -_clipped(torch.exp(lp - q)).detach() * lp * a),
    "dro": ({"beta": 0.1}, lambda lp, q, a: -(lp * a - 0.05 * (lp - q) ** 2)),
    "gspo": (CLIP, lambda lp, q, a: _lower(_sequence_ratio(lp, q), a)),
    "stable_reinforce": (
        {"kl_coeff": 0.05},
        lambda lp, q, a: -torch.exp(lp - q) * a + 0.025 * (lp - q) ** 2,
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_built_in_loss_is_its_formula(service, loss):
    config, formula = LOSSES[loss]
    data = [rewarded(9, 1), rewarded(6, 2)]
    ours, by_hand = adapter(service), adapter(service)

    def written(data, logprobs_list):
        parts = []
        for each, lp in zip(data, logprobs_list, strict=True):
            inputs = {name: value.to_torch() for name, value in each.loss_fn_inputs.items()}
            parts.append(formula(lp, inputs["logprobs"], inputs["advantages"]).sum())
        return torch.stack(parts).sum(), {}

    found = ours.forward_backward(data, loss, config)
    expected = by_hand.forward_backward_custom(data, written)
    steps = [client.optim_step(RATE) for client in (ours, by_hand)]

    assert found.result().metrics["loss:sum"] == pytest.approx(
        expected.result().metrics["loss:sum"], rel=1e-4
    )
    assert same(logprobs_of(found.result()), logprobs_of(expected.result()))
    norms = [each.result().metrics["grad_norm"] for each in steps]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    # The first step of Adam is nearly the gradient's sign, so an entry close to 0 may differ.
    assert near(logprobs(ours, data), logprobs(by_hand, data), 1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_reports_its_sum_in_forward_too_and_changes_nothing(service, loss):
    data = [rewarded(9, 1)]
    client = adapter(service)

    forward = client.forward(data, loss).result()
    both = client.forward_backward(data, loss).result()

    assert forward.metrics == both.metrics
    assert all(name.count(":") == 1 for name in both.metrics)
    assert both.metrics["loss:sum"] == pytest.approx(
        sum(float(each["elementwise_loss"].to_numpy().sum()) for each in both.loss_fn_outputs), rel=1e-4
    )


def test_cross_entropy_is_minus_the_weighted_sum(service):
    weights = [0.0, 1.0, -2.0, 0.5]
    ids = tokens(5)
    client = adapter(service)

    output = client.forward_backward([datum(ids, weights=weights)], "cross_entropy").result()

    (found,) = logprobs_of(output)
    assert output.metrics["loss:sum"] == pytest.approx(-float(np.dot(weights, found)), rel=1e-5)


def test_negative_weights_drive_the_other_way(service):
    ids = tokens(6)
    up, down = adapter(service), adapter(service)
    (before,) = logprobs(up, [datum(ids, weights=[1.0] * 5)])

    for client, weight in ((up, 1.0), (down, -1.0)):
        step(client, [datum(ids, weights=[weight] * 5)])

    assert logprobs(up, [datum(ids)])[0].sum() > before.sum() > logprobs(down, [datum(ids)])[0].sum()


def test_positions_of_weight_0_teach_nothing(service):
    data = [datum(tokens(7), weights=[0.0] * 6)]
    client = adapter(service)

    running = client.forward_backward(data, "cross_entropy")
    stepped = client.optim_step(RATE).result()

    assert running.result().metrics["loss:sum"] == 0
    assert np.isfinite(logprobs_of(running.result())[0]).all()
    assert stepped.metrics["grad_norm"] == 0


def _wide(dense: bool):
    """N = 6 positions with K = 8 targets each, of which two weigh anything."""
    random = np.random.default_rng(3)
    targets = np.zeros((6, 8), dtype=np.int64)
    weights = np.zeros((6, 8), dtype=np.float32)
    targets[:, :2] = random.integers(3, 1024, (6, 2))
    weights[:, :2] = random.uniform(0.1, 1, (6, 2))
    given = [types.TensorData.from_numpy(each) for each in (targets, weights)]
    if not dense:
        given = [torch.from_numpy(each) for each in (targets, weights)]
    made = types.Datum(
        model_input=tinker.ModelInput.from_ints(tokens(6)),
        loss_fn_inputs={"target_tokens": given[0], "weights": given[1]},
    )
    return made, targets, weights


def test_several_targets_a_position_are_scored_each_sparse_or_dense(service, served):
    sparse, targets, weights = _wide(dense=False)
    dense, *_ = _wide(dense=True)
    assert sparse.loss_fn_inputs["weights"].sparse_crow_indices is not None
    rows = reference(served.model).all_logprobs(tokens(6))
    expected = np.take_along_axis(rows, targets, axis=1)
    clients = [adapter(service), adapter(service)]

    outputs = [step(client, [each]) for client, each in zip(clients, (sparse, dense), strict=True)]

    (found,) = logprobs_of(outputs[0])
    assert found.shape == (6, 8)
    assert same(logprobs_of(outputs[1]), [found])
    assert near([found[weights > 0]], [expected[weights > 0]], 1e-4)
    assert outputs[0].metrics["loss:sum"] == pytest.approx(-float((weights * expected).sum()), rel=1e-4)
    assert same(*(logprobs(client, [text()]) for client in clients))


def test_one_target_in_a_column_is_one_target_in_a_row(service):
    ids = tokens(7)
    column = types.Datum(
        model_input=tinker.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=ids[1:], dtype="int64", shape=[6, 1]),
            "weights": types.TensorData(data=[1.0] * 6, dtype="float32", shape=[6, 1]),
        },
    )
    row = datum(ids, weights=[1.0] * 6)
    clients = [adapter(service), adapter(service)]

    outputs = [step(client, [each]) for client, each in zip(clients, (column, row), strict=True)]

    assert outputs[0].metrics["loss:sum"] == pytest.approx(outputs[1].metrics["loss:sum"], rel=1e-6)
    assert near(logprobs(clients[0], [row]), logprobs(clients[1], [row]), 1e-5)


def test_a_dpo_like_loss_is_ln_2_at_the_first_step_and_falls(service):
    chosen, rejected = text(9, 1), text(9, 2)
    client = adapter(service)
    old = [each.sum() for each in logprobs(client, [chosen, rejected])]

    def preference(_data, logprobs_list):
        gaps = [lp.sum() - float(before) for lp, before in zip(logprobs_list, old, strict=True)]
        loss = -torch.nn.functional.logsigmoid(0.1 * (gaps[0] - gaps[1]))
        return loss, {"margin:mean": (gaps[0] - gaps[1]).item()}

    outputs = []
    for _ in range(3):
        running = client.forward_backward_custom([chosen, rejected], preference)
        client.optim_step(RATE)
        outputs.append(running.result())

    found = [each.metrics["loss:sum"] for each in outputs]
    assert found[0] == pytest.approx(math.log(2), abs=1e-5)
    assert found[0] > found[1] > found[2]
    assert outputs[0].metrics["margin:mean"] == pytest.approx(0, abs=1e-4)
    assert {"loss:sum", "surrogate_loss:sum", "margin:mean"} <= outputs[0].metrics.keys()


def test_a_traced_loss_runs_at_the_client(service):
    """create_custom_loss uploads only where a server offers that, which this one does not."""

    def negative(logprobs, weights):
        loss = -(logprobs * weights).sum()
        return loss, {"custom/nll:sum": loss}

    client, plain = adapter(service), adapter(service)
    handle = service.create_custom_loss(negative, {"logprobs": 1, "weights": 1}).result()

    found = client.forward_backward_custom([text()], handle)
    expected = plain.forward_backward([text()], "cross_entropy")

    assert found.result().metrics["loss:sum"] == pytest.approx(
        expected.result().metrics["loss:sum"], rel=1e-5
    )
    norms = [each.optim_step(RATE).result().metrics["grad_norm"] for each in (client, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_masked_sequence_ratio_counts_the_masked_positions_alone(service):
    mask = np.array([0, 0, 1, 1, 1, 0, 1, 1], dtype=np.float32)
    data = rewarded(9, 4, sequence_ratio_mask=mask)
    client = adapter(service)

    output = client.forward(
        [data], "gspo", {"clip_low_threshold": 0.01, "clip_high_threshold": 100.0}
    ).result()

    (found,) = logprobs_of(output)
    old, advantages = (data.loss_fn_inputs[name].to_numpy() for name in ("logprobs", "advantages"))
    ratio = math.exp((found - old)[mask > 0].mean())
    assert output.metrics["loss:sum"] == pytest.approx(-ratio * float(advantages.sum()), rel=1e-4)
